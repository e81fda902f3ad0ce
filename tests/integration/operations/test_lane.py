"""Agents with a model run in the worker's lane: limits, cancellation, crashes and stops, beside one slot."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from minions.testing import MessagesApi, Reply, tool_use
from minions.testing import text as says
from tests.conftest import Define
from tests.integration.conftest import ACT, Tasks
from tests.support.model_client import use_messages_api
from tests.support.processes import Process, killed_on_exit, start_worker, wait_online, wait_until

pytestmark = pytest.mark.usefixtures("loops", "tool_package")

BUSY = text("SELECT busy FROM workers WHERE status = 'online'")
CONNECTIONS = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")


class Gated(MessagesApi):
    """Holds back the replies to requests that contain the word `gate`, until it is open."""

    def __init__(self, *script: Reply) -> None:
        super().__init__(script=[*script])
        self.gate = threading.Event()

    def answer(self, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, Reply]:
        """Wait for the gate; a request that was answered is noted twice."""
        if "gate" in str(body["messages"][0]):
            self.note(headers, body)
            self.gate.wait(60)
        return super().answer(headers, body)

    def asked(self, word: str, messages: int) -> int:
        """Return how many requests of a task with this word in its input had that many messages."""
        found = [request["messages"] for request in self.requests]
        return sum(len(each) == messages and word in str(each[0]) for each in found)


@pytest.fixture(scope="module")
def server() -> Iterator[Gated]:
    """The Messages API of all workers. Agents whose input says `tool` call the tool `act` once, then they are done."""
    deeds = [("spin", {}), ("hang", {}), ("die", {}), ("sleep", {"seconds": 60}), ("answer", {})]
    calls = [{**tool_use(("act", {"do": deed, **more})), "if": f"tool {deed}"} for deed, more in deeds]
    large = {"do": "sleep", "seconds": 60, "text": "x" * 500_000}
    calls.append({**tool_use(("act", large)), "if": "tool large"})
    script = [{**says("done"), "if": "tool_result"}, *calls, says("done")]
    with pytest.MonkeyPatch.context() as patch, use_messages_api(Gated(*script), patch) as running:
        assert isinstance(running, Gated)
        yield running


@pytest.fixture
def api(server: Gated) -> Iterator[Gated]:
    """The Messages API with an empty record and a closed gate."""
    server.gate.clear()
    server.requests.clear()
    yield server
    server.gate.set()


@pytest.fixture(scope="module")
def one_slot_process(server: Gated, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The module's worker."""
    process = start_worker(tmp_path_factory.mktemp("worker"), "work")
    with killed_on_exit(process):
        yield process


@pytest.fixture
def one_slot(one_slot_process: Process, database: Engine) -> Iterator[Process]:
    """A worker with one slot."""
    written = len(one_slot_process.output())
    wait_online(database, one_slot_process)
    yield one_slot_process
    print(f"--- {one_slot_process.log.name}\n{one_slot_process.output()[written:][-6000:]}")


@pytest.fixture
def own_worker(api: Gated, tmp_path: Path, database: Engine) -> Iterator[Process]:
    """A worker with one slot for a test that ends it."""
    process = start_worker(tmp_path, "other")
    with killed_on_exit(process):
        wait_online(database, process)
        yield process


@pytest.fixture(autouse=True)
def agents(define: Define) -> None:
    """`Thinker` has time; `Hasty` has one second, two at most, and one attempt; `Elsewhere` has another worker."""
    hasty = {"soft_time_limit": 1, "time_limit": 2, "max_attempts": 1}
    thinker = {"kind": "agent", "type": "agent", "model": "claude-sonnet-5", "tools": ["act"]}
    quick = {"capabilities": ["work"], "retry_backoff": 0.1, "retry_backoff_max": 0.2}
    define(
        ACT,
        {**thinker, "name": "Thinker", "config": quick},
        {**thinker, "name": "Hasty", "config": {**quick, **hasty}},
        {**thinker, "name": "Elsewhere", "config": {**quick, "capabilities": ["other"]}},
    )


def lane_of(worker: Process) -> int:
    """Wait until the worker's lane has started; return its process id."""
    return int(
        wait_until(lambda: re.findall(r'"pid": (\d+), "event": "lane_ready"', worker.output()), "a lane", 60)[-1]
    )


def test_many_agents_wait_for_their_model_beside_one_slot(
    api: Gated, one_slot: Process, tasks: Tasks, act: Any, database: Engine
) -> None:
    before = tasks.submit("Thinker", "tool answer")
    assert tasks.wait(before)["state"] == "succeeded"
    with database.connect() as connection:
        connections = connection.scalar(CONNECTIONS)
    waiting = [tasks.submit("Thinker", f"gate tool answer {number}") for number in range(40)]
    wait_until(lambda: tasks.count().get("running") == 40, "all agents are under way", 60)
    assert tasks.run(act())["state"] == "succeeded"
    with database.connect() as connection:
        wait_until(lambda: connection.scalar(BUSY) == 0, "the slot is free")
        assert connection.scalar(CONNECTIONS) <= connections + 10
    api.gate.set()
    assert {tasks.wait(task)["state"] for task in waiting} == {"succeeded"}
    assert {len(tasks.steps(task)) for task in waiting} == {3}


@pytest.mark.parametrize("deed", ["spin", "hang"])
def test_a_tool_that_never_returns_is_ended_without_harm_to_the_neighbours(
    api: Gated, one_slot: Process, tasks: Tasks, deed: str
) -> None:
    neighbour = tasks.submit("Thinker", "gate")
    tasks.wait_for(neighbour, "running")
    ended = tasks.run("Hasty", f"tool {deed}")
    assert (ended["state"], ended["error"]["type"]) == ("failed", "child_lost")
    assert "hard time_limit" in ended["error"]["message"]
    api.gate.set()
    assert tasks.wait(neighbour)["state"] == "succeeded"
    assert len(tasks.executions(neighbour)) == 1
    assert tasks.run("Thinker", "tool answer")["state"] == "succeeded"


def test_a_tool_that_kills_its_process_costs_its_own_task_only(api: Gated, one_slot: Process, tasks: Tasks) -> None:
    neighbour = tasks.submit("Thinker", "gate")
    ended = tasks.run("Hasty", "tool die")
    assert (ended["state"], ended["error"]["type"]) == ("failed", "child_lost")
    api.gate.set()
    assert tasks.wait(neighbour)["state"] == "succeeded"
    assert len(tasks.executions(neighbour)) == 1


@pytest.mark.parametrize("work", ["gate", "tool sleep"])
def test_a_soft_limit_ends_a_model_call_and_a_tool_call(api: Gated, one_slot: Process, tasks: Tasks, work: str) -> None:
    ended = tasks.run("Hasty", work)
    assert (ended["state"], ended["error"]["type"]) == ("failed", "time_limit_exceeded")


@pytest.mark.parametrize("work", ["gate", "tool sleep", "tool hang", "tool large"])
def test_a_cancelled_task_ends_within_the_grace_period(api: Gated, one_slot: Process, tasks: Tasks, work: str) -> None:
    task = tasks.submit("Thinker", work)
    messages = 1 if work == "gate" else 2
    wait_until(lambda: len(tasks.steps(task)) == messages, "the call has begun")
    tasks.cancel(task)
    assert tasks.wait(task)["state"] == "cancelled"
    assert tasks.run("Thinker", "tool answer")["state"] == "succeeded"


def test_a_killed_lane_repeats_no_finished_call_and_charges_nobody(api: Gated, one_slot: Process, tasks: Tasks) -> None:
    api.gate.set()
    lane = lane_of_first_task(one_slot, tasks)
    api.gate.clear()
    first, second = (tasks.submit("Thinker", f"gate {word}") for word in ("one", "two"))
    for word in ("one", "two"):
        wait_until(lambda word=word: api.asked(word, 1) == 1, "the model is asked")
    os.kill(lane, signal.SIGKILL)
    wait_until(lambda: all(len(tasks.executions(task)) == 2 for task in (first, second)), "both run again", 60)
    api.gate.set()
    for task in (first, second):
        assert tasks.wait(task)["state"] == "succeeded"
        assert [execution["outcome"] for execution in tasks.executions(task)] == ["handed_back", "succeeded"]


def test_a_lane_that_is_stuck_is_killed(api: Gated, one_slot: Process, tasks: Tasks) -> None:
    lane = lane_of_first_task(one_slot, tasks)
    task = tasks.submit("Thinker", "gate")
    wait_until(lambda: api.asked("gate", 1) == 1, "the model is asked")
    os.kill(lane, signal.SIGSTOP)
    wait_until(lambda: len(tasks.executions(task)) == 2, "it runs again", 60)
    api.gate.set()
    assert tasks.wait(task)["state"] == "succeeded"


def test_a_worker_that_stops_hands_agents_back_after_their_current_call(
    api: Gated, own_worker: Process, tasks: Tasks, tmp_path: Path, database: Engine
) -> None:
    task = tasks.submit("Elsewhere", "gate tool answer")
    wait_until(lambda: api.asked("gate", 1) == 1, "the model is asked")
    own_worker.signal(signal.SIGTERM)
    wait_until(lambda: "Warm shutdown" in own_worker.output(), "the worker stops")
    api.gate.set()
    assert own_worker.wait() == 0
    assert [step["status"] for step in tasks.steps(task)] == ["finished"]
    other = start_worker(tmp_path, "other")
    with killed_on_exit(other):
        wait_online(database, other)
        assert tasks.wait(task)["state"] == "succeeded"
    assert [execution["outcome"] for execution in tasks.executions(task)] == ["handed_back", "succeeded"]
    # The held request is noted when it arrives and when it is answered.
    assert api.asked("gate", 1) == 2


def test_the_lane_ends_with_its_worker(api: Gated, own_worker: Process, tasks: Tasks) -> None:
    lane = lane_of_first_task(own_worker, tasks, "Elsewhere")
    os.kill(own_worker.pid, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{lane}").exists() or "\nState:\tZ" in status(lane), "the lane has ended")


def test_other_pools_run_agents_themselves(
    api: Gated, tool_package: Path, tmp_path: Path, tasks: Tasks, database: Engine
) -> None:
    process = start_worker(tmp_path, "other", options=("--pool", "solo"))
    with killed_on_exit(process):
        wait_online(database, process)
        assert [tasks.run("Elsewhere", "tool answer")["state"] for _ in range(3)] == ["succeeded"] * 3
        assert "lane_ready" not in process.output()


def lane_of_first_task(worker: Process, tasks: Tasks, agent: str = "Thinker") -> int:
    """Run a task, which starts the lane; return the lane's process id."""
    assert tasks.run(agent, "Hello")["state"] == "succeeded"
    return lane_of(worker)


def status(pid: int) -> str:
    """Return what the kernel says of a process."""
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "\nState:\tZ"
