"""Snoozes, timers and signals: a task that waits holds no worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from shared.database.connections import transaction
from shared.errors import Conflict, NotFound
from shared.tasks import lifecycle
from tests.conftest import Define
from tests.integration.conftest import InlineWorker, Tasks

WAIT = {"$wait": {"signal": "paid"}}


def send(task: UUID, name: str, payload: Any = None) -> str:
    with transaction() as connection:
        return lifecycle.signal(connection, task, name, payload)


def run_due(inline_worker: InlineWorker, tasks: Tasks, task: UUID) -> dict[str, Any]:
    """Run due tasks once; return the task."""
    inline_worker._round()
    return tasks.get(task)


def test_a_snooze_runs_again_uncharged(tasks: Tasks, act: Any, inline_worker: InlineWorker, tmp_path: Path) -> None:
    task = tasks.submit(
        act(), {"do": "later", "control": {"$snooze": 0.05}, "times": 3, "log": str(tmp_path / "calls")}
    )
    inline_worker.run_all()
    ended = tasks.get(task)
    assert (ended["state"], ended["output"], ended["attempts"], ended["claim"]) == ("succeeded", {"calls": 4}, 0, 4)
    assert [execution["outcome"] for execution in tasks.executions(task)] == ["suspended"] * 3 + ["succeeded"]


def test_snoozed_task_reports_its_wait(tasks: Tasks, act: Any, inline_worker: InlineWorker) -> None:
    task = tasks.submit(act(), {"do": "answer", "answer": {"$snooze": 3600}})
    waiting = run_due(inline_worker, tasks, task)
    assert (waiting["state"], waiting["wait_reason"]) == ("waiting", "snooze")
    assert 3500 < (waiting["due_at"] - waiting["updated_at"]).total_seconds() <= 3600
    assert tasks.cancel(task) == "cancelled"


def test_retry_after_is_charged_and_sets_the_pause(tasks: Tasks, act: Any, inline_worker: InlineWorker) -> None:
    control = {"$retry_after": 3600, "reason": "the other side is busy"}
    task = tasks.submit(act(), {"do": "answer", "answer": control})
    waiting = run_due(inline_worker, tasks, task)
    assert (waiting["state"], waiting["wait_reason"], waiting["attempts"]) == ("waiting", "backoff", 1)
    assert 3500 < (waiting["due_at"] - waiting["updated_at"]).total_seconds() <= 3600
    [execution] = tasks.executions(task)
    assert execution["error"]["message"].endswith("asks to be called again later: the other side is busy")


def test_a_timer_and_its_result(tasks: Tasks, act: Any, inline_worker: InlineWorker) -> None:
    task = tasks.submit(act(), {"do": "answer", "answer": {"$wait": {"seconds": 0.05}}})
    inline_worker.run_all()
    assert tasks.get(task)["output"] == {"timed_out": True}
    assert [(step["kind"], step["status"]) for step in tasks.steps(task)] == [
        ("tool_call", "finished"),
        ("wait", "finished"),
    ]


def test_a_signal_wakes_its_task_with_the_payload(
    tasks: Tasks, act: Any, inline_worker: InlineWorker, tmp_path: Path
) -> None:
    log = tmp_path / "calls"
    task = tasks.submit(act(), {"do": "answer", "answer": WAIT, "log": str(log)})
    waiting = run_due(inline_worker, tasks, task)
    assert (waiting["state"], waiting["wait_reason"], waiting["open_waits"]) == ("waiting", "signal", 1)
    assert send(task, "other", 1) == "waiting"
    assert send(task, "paid", {"amount": 7}) == "pending"
    inline_worker.run_all()
    output = tasks.get(task)["output"]
    assert (output["signal"], output["payload"]) == ("paid", {"amount": 7})
    assert log.read_text().count("\n") == 1, "the call is not made again"


def test_signal_may_arrive_before_the_wait(tasks: Tasks, act: Any, inline_worker: InlineWorker) -> None:
    task = tasks.submit(act(), {"do": "answer", "answer": WAIT})
    send(task, "paid", "first")
    send(task, "paid", "second")
    inline_worker.run_all()
    assert tasks.get(task)["output"]["payload"] == "first"


def test_a_wait_for_a_signal_may_time_out(tasks: Tasks, act: Any, inline_worker: InlineWorker) -> None:
    task = tasks.submit(act(), {"do": "answer", "answer": {"$wait": {"signal": "paid", "seconds": 0.05}}})
    inline_worker.run_all()
    assert tasks.get(task)["output"] == {"timed_out": True}


def test_signals_without_receiver_are_refused(tasks: Tasks, act: Any, inline_worker: InlineWorker) -> None:
    task = tasks.submit(act(), {})
    inline_worker.run_all()
    with pytest.raises(Conflict, match="accepts no more signals"):
        send(task, "paid")
    with pytest.raises(NotFound, match="There is no task"):
        send(UUID(int=7), "paid")


def test_invalid_wait_is_an_error(tasks: Tasks, act: Any, inline_worker: InlineWorker) -> None:
    for control, told in (
        ({"$wait": {"for": "ever"}}, "$wait must have"),
        ({"$snooze": -1}, "$snooze must be 0 to"),
        ({"$wait": {"signal": ""}}, "must be a name of 1 to 200"),
    ):
        task = tasks.submit(act(), {"do": "answer", "answer": control})
        inline_worker.run_all()
        assert told in tasks.get(task)["error"]["message"]


def test_sandboxed_functions_wait_too(
    tasks: Tasks, define: Define, inline_worker: InlineWorker, database: Engine
) -> None:
    code = "def poll(after):\n    return {'$wait': {'seconds': after}}"
    config = {"capabilities": ["work"]}
    define(
        {"kind": "function", "name": "poll", "code": code, "output_schema": {"type": "string"}},
        {"kind": "agent", "name": "Poll", "type": "function", "function": "poll", "config": config},
    )
    task = tasks.submit("Poll", {"after": 0.01})
    inline_worker.run_all()
    assert tasks.get(task)["output"] == {"timed_out": True}


def test_retry_policy_overrides_final_and_temporary_errors(tasks: Tasks, act: Any, inline_worker: InlineWorker) -> None:
    config = {"retry_on": ["tool_error"], "max_attempts": 3, "retry_curve": "constant", "retry_jitter": 0.0}
    again = tasks.submit(act("Again", config=config), {"do": "refuse"})
    never = tasks.submit(act("Never", config={"no_retry_on": ["tool_error"]}), {"do": "fail"})
    inline_worker.run_all()
    assert (tasks.get(again)["state"], tasks.get(again)["attempts"]) == ("failed", 3)
    assert (tasks.get(never)["state"], tasks.get(never)["attempts"]) == ("failed", 0)


def test_definition_of_later_release_waits_for_later_minion(
    tasks: Tasks, act: Any, inline_worker: InlineWorker, database: Engine
) -> None:
    task = tasks.submit(act(), {})
    with database.begin() as connection:
        connection.execute(text("ALTER TABLE agent_versions DISABLE TRIGGER USER"))
        connection.execute(text("UPDATE agent_versions SET definition = definition || '{\"later\": 1}'"))
        connection.execute(text("ALTER TABLE agent_versions ENABLE TRIGGER USER"))
    waiting = run_due(inline_worker, tasks, task)
    assert (waiting["state"], waiting["wait_reason"], waiting["attempts"]) == ("waiting", "handed_back", 0)
