"""Claim, run, record: the records of one task, and its failures."""

from __future__ import annotations

import itertools
import os
import re
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from shared.broker import make_app, publish
from shared.database.connections import autocommit
from shared.settings import Settings
from shared.tasks.lifecycle import Dispatched
from tests.conftest import Define
from tests.integration.conftest import Tasks
from tests.support.processes import Process, wait_until

pytestmark = pytest.mark.usefixtures("loops", "worker")

MEMORY = text("SELECT max(memory_bytes) FROM workers WHERE status = 'online'")
CLAIMING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%minion_claim%'"


def test_execution_records_worker_and_resources(tasks: Tasks, act: Any, worker: Process) -> None:
    task = tasks.run(act(), {"do": "eat", "megabytes": 64})
    assert (task["state"], task["output"], task["attempts"]) == ("succeeded", {"eaten": 64 << 20}, 0)
    [execution] = tasks.executions(task["id"])
    assert execution["outcome"] == "succeeded"
    assert execution["worker"].startswith("test")
    assert execution["cpu_seconds"] > 0
    assert execution["peak_memory_bytes"] > 64 << 20
    assert execution["started_at"] <= execution["finished_at"]
    assert execution["error"] is None
    [step] = tasks.steps(task["id"])
    assert (step["kind"], step["name"], step["status"], step["effect"]) == (
        "tool_call",
        "act",
        "finished",
        "idempotent",
    )


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="this system does not report memory")
def test_heartbeat_reports_memory(database: Engine) -> None:
    with autocommit(database).connect() as connection:
        memory = wait_until(lambda: connection.scalar(MEMORY), "a heartbeat")
    assert 20e6 < memory < 2e9


def test_a_retryable_error_runs_again_after_a_pause(tasks: Tasks, act: Any) -> None:
    task = tasks.run(act(), {"do": "fail", "times": 2})
    assert (task["state"], task["output"], task["attempts"]) == ("succeeded", {"attempt": 3}, 2)
    executions = tasks.executions(task["id"])
    assert [execution["outcome"] for execution in executions] == ["retried", "retried", "succeeded"]
    assert "attempt 1 fails" in executions[0]["error"]["message"]
    pauses = [(b["started_at"] - a["finished_at"]).total_seconds() for a, b in itertools.pairwise(executions)]
    assert all(pause > 0.05 for pause in pauses)


def test_attempts_are_used_up(tasks: Tasks, act: Any) -> None:
    task = tasks.run(act(config={"max_attempts": 2}), {"do": "fail"})
    assert (task["state"], task["attempts"]) == ("failed", 2)
    assert task["error"] | {"message": ""} == {
        "type": "tool_error",
        "message": "",
        "attempts": 2,
        "losses": 0,
        "max_attempts": 2,
    }
    assert "RuntimeError: attempt 2 fails" in task["error"]["message"]
    assert [execution["outcome"] for execution in tasks.executions(task["id"])] == ["retried", "failed"]


def test_a_final_error_is_not_tried_again(tasks: Tasks, act: Any) -> None:
    task = tasks.run(act(), {"do": "refuse"})
    assert (task["state"], task["attempts"]) == ("failed", 0)
    assert task["error"]["message"] == "No, and asking again will not help."


def test_the_soft_limit_ends_one_attempt(tasks: Tasks, act: Any) -> None:
    config = {"soft_time_limit": 1, "time_limit": 20, "max_attempts": 2}
    task = tasks.run(act(config=config), {"do": "sleep", "seconds": 30})
    assert (task["state"], task["attempts"]) == ("failed", 2)
    assert task["error"]["type"] == "time_limit_exceeded"
    assert task["error"]["message"] == "The task ran longer than its soft_time_limit of 1 s."


def test_the_hard_limit_kills_the_child_and_charges_an_attempt(tasks: Tasks, act: Any) -> None:
    config = {"soft_time_limit": 1, "time_limit": 2, "max_attempts": 2}
    task = tasks.run(act(config=config), {"do": "hang"})
    assert (task["state"], task["attempts"], task["claim"]) == ("failed", 2, 2)
    assert "hard time_limit of 2 s" in task["error"]["message"]
    assert [execution["outcome"] for execution in tasks.executions(task["id"])] == ["lost", "lost"]
    assert tasks.run(act("Next"), {})["state"] == "succeeded"


def test_soft_limit_in_a_statement_ends_only_the_connection(tasks: Tasks, act: Any) -> None:
    config = {"soft_time_limit": 1, "time_limit": 20, "max_attempts": 1}
    task = tasks.run(act("Query", config=config), {"do": "query", "seconds": 10})
    assert (task["state"], task["error"]["type"]) == ("failed", "time_limit_exceeded")
    assert all(tasks.run(act(), {})["state"] == "succeeded" for _ in range(3))


def test_a_hard_limit_inside_a_statement_leaves_no_lock(tasks: Tasks, act: Any) -> None:
    config = {"soft_time_limit": 1, "time_limit": 2, "max_attempts": 1}
    task = tasks.run(act("Query", config=config), {"do": "query", "seconds": 10, "deaf": True})
    assert (task["state"], task["error"]["type"]) == ("failed", "child_lost")
    assert "hard time_limit of 2 s" in task["error"]["message"]


def test_a_zygote_that_dies_costs_no_task(tasks: Tasks, define: Define, worker: Process) -> None:
    config = {"capabilities": ["work"], "max_attempts": 1}
    define(
        {"kind": "function", "name": "double", "code": "def double(x):\n    return 2 * x"},
        {"kind": "agent", "name": "Double", "type": "function", "function": "double", "config": config},
    )
    assert tasks.run("Double", {"x": 1})["output"] == 2
    zygotes = [pid for child in children(worker.pid) for pid in children(child)]
    assert zygotes
    for pid in zygotes:
        os.kill(pid, signal.SIGKILL)
    assert [tasks.run("Double", {"x": x})["output"] for x in range(4)] == [0, 2, 4, 6]


def children(pid: int) -> list[int]:
    """The processes that this one started, from its main thread or any other."""
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


def slots(pid: int) -> set[int]:
    """The processes of a worker's pool, which its main thread has forked. Another thread starts the zygote."""
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_a_child_that_is_killed_is_charged_and_replaced(tasks: Tasks, act: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    task = tasks.run(act(), {"do": "die", "times": 1, "log": str(log)})
    assert (task["state"], task["output"], task["attempts"]) == ("succeeded", {"attempt": 2}, 1)
    first, _ = tasks.executions(task["id"])
    assert first["outcome"] == "lost"
    assert "SIGKILL" in first["error"]["message"]
    first_call, second_call = (line.split() for line in log.read_text().splitlines())
    assert first_call[2] == second_call[2], "the idempotency key stays the same"


def test_a_child_that_dies_is_missed_at_once(tasks: Tasks, act: Any) -> None:
    task = tasks.run(act(), {"do": "die", "times": 2})
    # The second one, which comes soon after Celery's own look every 5 s has found the first.
    lost = tasks.executions(task["id"])[1]
    assert (lost["finished_at"] - lost["started_at"]).total_seconds() < 3


def test_child_dying_before_its_claim_ends_no_other_task(
    tasks: Tasks, act: Any, worker: Process, database: Engine, settings: Settings, tmp_path: Path
) -> None:
    """The message comes twice, and the second child dies while it waits for the database."""
    log = tmp_path / "log"
    task = tasks.submit(act(), {"do": "meet", "calls": 2, "patience": 60, "log": str(log)})
    tasks.wait_for(task, "running")
    holder = int(wait_until(lambda: log.exists() and log.read_text(), "the call is under way").split()[3])
    [other] = slots(worker.pid) - {holder}
    written = len(worker.output())

    def look(statement: str) -> Any:
        with database.connect() as connection:
            return connection.scalar(text(statement))

    with database.begin() as standstill:
        standstill.execute(text("LOCK TABLE pauses"))
        publish(make_app(settings), [Dispatched(task, 0, "work", "Act", 60, 120, 0)])
        wait_until(lambda: look(CLAIMING), "the second child claims the task")
        os.kill(other, signal.SIGKILL)
        wait_until(lambda: re.search('"(child|duplicate)_lost"', worker.output()[written:]), "it is missed")
    with log.open("a") as file:
        file.write(str(task))
    assert tasks.wait(task)["state"] == "succeeded"
    assert [execution["outcome"] for execution in tasks.executions(task)] == ["succeeded"]


def test_task_that_kills_its_child_fails_unsafe_is_not_retried(tasks: Tasks, act: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    unsafe = tasks.submit(act("Unsafe", effect="unsafe"), {"do": "die", "times": 1, "log": str(log)})
    deadly = tasks.submit(act("Deadly", config={"max_attempts": 2}), {"do": "die"})
    assert tasks.wait_for(unsafe, "waiting")["wait_reason"] in ("backoff", "answer")
    assert wait_until(lambda: tasks.get(unsafe)["wait_reason"] == "answer", "somebody is asked")
    assert len(log.read_text().splitlines()) == 1
    task = tasks.wait(deadly)
    assert (task["state"], task["attempts"], task["error"]["type"]) == ("failed", 2, "child_lost")


def test_large_output_is_returned_whole(tasks: Tasks, act: Any) -> None:
    text = "é" * 200_000
    assert tasks.run(act(), {"answer": text})["output"] == text


def test_an_output_that_breaks_the_schema_fails_with_every_path(tasks: Tasks, act: Any) -> None:
    schema = {"type": "object", "required": ["a", "b"], "properties": {"c": {"type": "integer"}}}
    task = tasks.run(act(output_schema=schema), {"answer": {"c": "x"}})
    assert task["error"]["type"] == "invalid_output"
    assert len(task["error"]["violations"]) == 3


@pytest.mark.parametrize("what", ["nan", "nul", "surrogate", "set", "deep", "huge"])
def test_an_output_that_cannot_be_stored_fails_the_task_at_once(tasks: Tasks, act: Any, what: str) -> None:
    task = tasks.run(act(), {"do": "strange", "what": what})
    assert (task["state"], task["attempts"]) == ("failed", 0)
    assert task["error"]["message"].startswith("The output of tool 'act'")


def test_a_tool_that_is_not_installed_is_named(tasks: Tasks, define: Define) -> None:
    config = {"capabilities": ["work"], "max_attempts": 1}
    define(
        {"kind": "tool", "name": "gone", "type": "builtin", "builtin": "gone"},
        {"kind": "agent", "name": "A", "type": "function", "tool": "gone", "config": config},
    )
    task = tasks.run("A", {})
    assert task["state"] == "failed"
    assert "'gone'" in task["error"]["message"]
    assert "act" in task["error"]["message"]


def test_the_soft_limit_ends_a_sandboxed_function_too(tasks: Tasks, define: Define) -> None:
    code = "def spin(forever: bool):\n    while forever:\n        pass\n    return 'done'\n"
    define(
        {"kind": "function", "name": "spin", "code": code},
        {
            "kind": "agent",
            "name": "Spin",
            "type": "function",
            "function": "spin",
            "config": {"capabilities": ["work"], "soft_time_limit": 4, "max_attempts": 1},
        },
    )
    stuck, *others = [tasks.submit("Spin", {"forever": forever}) for forever in (True, False, False, False, False)]
    assert tasks.wait(stuck)["error"]["type"] == "time_limit_exceeded"
    others += [tasks.submit("Spin", {"forever": False}) for _ in range(4)]
    assert [tasks.wait(task)["output"] for task in others] == ["done"] * 8
    [execution] = tasks.executions(others[0])
    assert execution["peak_memory_bytes"] > 1 << 20


def test_cancelled_running_task_stops_at_its_next_step(tasks: Tasks, act: Any) -> None:
    task = tasks.submit(act(), {"do": "sleep", "seconds": 1})
    tasks.wait_for(task, "running")
    assert tasks.cancel(task) == "running"
    assert tasks.wait(task)["state"] == "cancelled"
    assert [execution["outcome"] for execution in tasks.executions(task)] == ["cancelled"]


def test_a_cancel_interrupts_a_call(tasks: Tasks, act: Any) -> None:
    task = tasks.submit(act(), {"do": "sleep", "seconds": 60})
    tasks.wait_for(task, "running")
    tasks.cancel(task)
    ended = tasks.wait(task, timeout=10)
    assert (ended["state"], ended["attempts"]) == ("cancelled", 0)
    assert [execution["outcome"] for execution in tasks.executions(task)] == ["cancelled"]


def test_a_cancel_interrupts_a_sandboxed_function(tasks: Tasks, define: Define) -> None:
    code = "import time\ndef nap():\n    time.sleep(60)"
    config = {"capabilities": ["work"]}
    define(
        {"kind": "function", "name": "nap", "code": code, "config": {"timeout": 60, "allowed_imports": ["time"]}},
        {"kind": "agent", "name": "Nap", "type": "function", "function": "nap", "config": config},
    )
    task = tasks.submit("Nap")
    tasks.wait_for(task, "running")
    tasks.cancel(task)
    assert tasks.wait(task, timeout=10)["state"] == "cancelled"
    [execution] = tasks.executions(task)
    assert execution["cpu_seconds"] is not None, "the child has recorded it itself: it was not killed"


def test_task_that_ignores_cancel_is_killed(tasks: Tasks, act: Any) -> None:
    task = tasks.submit(act(), {"do": "hang"})
    tasks.wait_for(task, "running")
    tasks.cancel(task)
    assert tasks.wait(task, timeout=15)["state"] == "cancelled"
    after = tasks.run(act(), {"do": "answer", "answer": 1})
    assert after["state"] == "succeeded"


def test_a_task_that_expires_while_it_runs_frees_its_slot(tasks: Tasks, act: Any) -> None:
    deadline = datetime.now(UTC) + timedelta(seconds=1)
    late = [tasks.submit(act(), {"do": "sleep", "seconds": 60}, deadline=deadline) for _ in range(2)]
    for task in late:
        assert tasks.wait(task, timeout=10)["state"] == "expired"
    assert tasks.run(act(), {"do": "answer", "answer": 1})["state"] == "succeeded"
