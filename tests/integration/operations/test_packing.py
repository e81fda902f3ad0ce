"""The dispatcher joins short tasks to packs when there is a backlog, and only for workers that understand them."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, text

from orchestrator import packing
from orchestrator.packing import MOST, Packing
from shared.database.connections import transaction
from shared.tasks import lifecycle
from shared.tasks.lifecycle import Dispatched
from tests.integration.conftest import Tasks
from tests.support.processes import Process
from workers import minion

WORKER = text(
    "INSERT INTO workers (name, capabilities, slots, pool, host, pid, version, last_seen) "
    "VALUES ('w', '{work}', :slots, :pool, 'here', 1, :version, now() + interval '1 day') RETURNING id"
)
LASTED = text("UPDATE executions SET started_at = finished_at - :seconds * interval '1 s'")


class Backlog:
    """Tasks of the agent `Act`, and workers that are rows only."""

    def __init__(self, database: Engine, tasks: Tasks) -> None:
        self.database = database
        self.tasks = tasks
        self.packing = Packing(lease=3600)
        self.worker = self.add_worker()

    def add_worker(self, *, slots: int = 2, pool: str = "prefork", version: str = "0.3.0") -> Any:
        with self.database.begin() as connection:
            return connection.scalar(WORKER, {"slots": slots, "pool": pool, "version": version})

    def dispatch(self, number: int, agent: str = "Act") -> list[list[Dispatched]]:
        """Submit tasks, and return what a round of the dispatcher makes of them."""
        for _ in range(number):
            self.tasks.submit(agent, {})
        with transaction() as connection:
            batch = lifecycle.dispatch(connection, lease=3600, window=1000)
            packs = self.packing.pack(connection, batch)
        assert sorted(task.task_id for pack in packs for task in pack) == sorted(task.task_id for task in batch)
        return packs

    def run(self, packs: list[list[Dispatched]], seconds: float) -> None:
        """Run tasks that then lasted that long."""
        for task in [task for pack in packs for task in pack]:
            minion.run(task.task_id, task.claim, self.worker)
        with self.database.begin() as connection:
            connection.execute(LASTED, {"seconds": seconds})

    def learn(self, seconds: float) -> None:
        self.run(self.dispatch(10), seconds)


@pytest.fixture
def backlog(database: Engine, tasks: Tasks, act: Any, tool_package: Any, monkeypatch: pytest.MonkeyPatch) -> Backlog:
    monkeypatch.setattr(packing, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(packing, "SOON_SECONDS", 0.0)
    act(effect="pure")
    return Backlog(database, tasks)


def sizes(packs: list[list[Dispatched]]) -> list[int]:
    return [len(pack) for pack in packs]


def test_new_agent_is_not_packed(backlog: Backlog) -> None:
    assert set(sizes(backlog.dispatch(40))) == {1}


def test_short_tasks_of_a_backlog_are_packed(backlog: Backlog) -> None:
    backlog.learn(0.002)
    packs = backlog.dispatch(40)
    assert sizes(packs) == [20, 20]
    assert not any(task.has_model for pack in packs for task in pack)
    assert [task.priority for pack in packs for task in pack] == [0] * 40
    assert sizes(backlog.dispatch(200)) == [MOST] * 6 + [8]


def test_packs_keep_the_order_of_the_dispatcher(backlog: Backlog) -> None:
    backlog.learn(0.002)
    for fields in ({"key": "many"}, {"key": "few"}, {"key": "few", "priority": 5}):
        for _ in range(20 if fields["key"] == "many" else 5):
            backlog.tasks.submit("Act", {}, **fields)
    with transaction() as connection:
        batch = lifecycle.dispatch(connection, lease=3600, window=1000)
        packs = backlog.packing.pack(connection, batch)
    assert sizes(packs) == [15, 15]
    assert [task for pack in packs for task in pack] == batch
    assert [task.priority for task in packs[0]] == [5] * 5 + [0] * 10


def test_only_some_agents_are_remembered(backlog: Backlog, act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MOST_AGENTS", 2)
    for name in ("One", "Two", "Three"):
        act(name, effect="pure")
        backlog.dispatch(2, name)
    assert len(backlog.packing._agents) == 2


def test_no_pack_while_a_slot_would_stay_free(backlog: Backlog) -> None:
    backlog.learn(0.002)
    assert sizes(backlog.dispatch(1)) == [1]
    assert sizes(backlog.dispatch(3)) == [1, 1, 1]
    backlog.add_worker(slots=6)
    assert len(backlog.dispatch(17)) >= 8


def test_pack_takes_a_quarter_of_a_second(backlog: Backlog) -> None:
    backlog.learn(0.08)
    assert sizes(backlog.dispatch(9)) == [3, 3, 3]


def test_window_holds_short_tasks_for_several_rounds(backlog: Backlog) -> None:
    backlog.learn(0.004)
    assert backlog.packing.windows == {}
    backlog.dispatch(40)
    assert backlog.packing.windows == {"work": 100}
    with transaction() as connection:
        for _ in range(70):
            backlog.tasks.submit("Act", {})
        batch = lifecycle.dispatch(connection, lease=3600, window=1, windows=backlog.packing.windows)
    assert len(batch) == 60


def test_window_of_slow_tasks_is_not_widened(backlog: Backlog) -> None:
    backlog.learn(0.002)
    backlog.run(backlog.dispatch(40)[:1], 0.5)
    backlog.dispatch(40)
    assert backlog.packing.windows == {}


def test_agent_that_turns_slow_is_unpacked(backlog: Backlog) -> None:
    backlog.learn(0.002)
    packs = backlog.dispatch(40)
    assert len(packs) == 2
    backlog.run(packs[:1], 0.5)
    assert set(sizes(backlog.dispatch(40))) == {1}


def test_agent_whose_tasks_hang_is_unpacked(backlog: Backlog) -> None:
    backlog.learn(0.002)
    packs = backlog.dispatch(40)
    with transaction() as connection:
        for task in packs[0][-2:]:
            assert lifecycle.claim(connection, task.task_id, task.claim, backlog.worker)
        connection.execute(text("UPDATE executions SET started_at = now() - interval '1 s' WHERE outcome = 'running'"))
    assert set(sizes(backlog.dispatch(40))) == {1}


@pytest.mark.parametrize("worker", [{"version": "0.2.0"}, {"version": "unknown"}, {"pool": "threads"}])
def test_worker_that_does_not_understand_packs_receives_none(backlog: Backlog, worker: dict[str, str]) -> None:
    backlog.learn(0.002)
    backlog.add_worker(**worker)  # type: ignore[arg-type]
    assert set(sizes(backlog.dispatch(40))) == {1}


def test_agent_with_a_model_is_never_packed(backlog: Backlog, define: Any) -> None:
    define({"kind": "agent", "name": "Model", "model": "claude-sonnet-5-5", "config": {"capabilities": ["work"]}})
    backlog.packing._agents.clear()
    packs = backlog.dispatch(40, "Model")
    assert set(sizes(packs)) == {1}
    assert all(task.has_model for pack in packs for task in pack)
    assert [agent.calls_model for agent in backlog.packing._agents.values()] == [True]


def test_task_that_was_given_back_is_not_packed_again(backlog: Backlog) -> None:
    backlog.learn(0.002)
    [first, _] = backlog.dispatch(40)
    with transaction() as connection:
        for task in first:
            assert lifecycle.claim(connection, task.task_id, task.claim, backlog.worker)
            lifecycle.release(connection, task.task_id, 1, how="lost", charged=False)
    packs = backlog.dispatch(20)
    again = {task.task_id for task in first}
    assert all(len(pack) == 1 for pack in packs if pack[0].task_id in again)
    assert sum(len(pack) for pack in packs) == 40
    assert max(sizes(packs)) == 20


@pytest.mark.usefixtures("loops", "worker")
def test_worker_runs_a_backlog_in_packs(tasks: Tasks, act: Any, database: Engine, worker: Process) -> None:
    agent = act(effect="pure")
    submitted = [tasks.submit(agent, {"answer": n}) for n in range(300)]
    for n, task in enumerate(submitted):
        assert tasks.wait(task, 60)["output"] == n
    with database.connect() as connection:
        claims = connection.execute(text("SELECT claim, outcome, count(*) FROM executions GROUP BY 1, 2")).all()
        # Ends of a pack are committed in one transaction.
        together = connection.scalar(
            text("SELECT max(n) FROM (SELECT count(*) AS n FROM executions GROUP BY finished_at) AS ends")
        )
    assert [tuple(row) for row in claims] == [(1, "succeeded", 300)]
    assert together > 1
