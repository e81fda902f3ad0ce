"""Counters after a disorderly load equal a recount of the rows, those that retention has deleted included."""

from __future__ import annotations

import random
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, OperationalError

from orchestrator.observe.counting import catch_up, count_ends
from orchestrator.observe.tally import Places
from orchestrator.retention.retention import prune
from shared.settings import Settings
from shared.tasks import lifecycle
from shared.tasks.states import State
from tests.integration.observe.test_counting import step, totals, write
from tests.integration.tasks.test_pack_sql import claim_pack, finish_pack
from tests.support.lifecycle_driver import LifecycleDriver

ROUNDS, MOVES = 4, 120
ROWS = {
    "task": "SELECT state, count(*) FROM task_outcomes GROUP BY 1",
    "execution": "SELECT outcome, count(*) FROM executions WHERE finished_at IS NOT NULL GROUP BY 1",
    "step": "SELECT status, count(*) FROM steps WHERE finished_at IS NOT NULL AND copied_from IS NULL GROUP BY 1",
}
CHOOSE = text(
    """
    SELECT s.task_id, s.claim, t.root_id FROM task_status s JOIN tasks t ON t.id = s.task_id
        WHERE s.state = ANY (:states) AND NOT t.root_id = ANY (:held) ORDER BY s.task_id
    """
)
REPLAY = "SELECT minion_replay_from(CAST(:request AS jsonb), :task, 1, NULL, 'test')"
OF_TASKS = ("task_status", "task_outcomes", "executions", "steps", "task_events", "retried_steps", "budgets")
IDS = {"tasks": ("id", "root_id", "parent_id", "replay_of"), "steps": ("child_id", "copied_from")}


@dataclass
class Load:
    """Random moves in the lives of tasks; what rows do not tell (any more) is noted in `gone`."""

    driver: LifecycleDriver
    chance: random.Random
    gone: dict[str, Counter[str]] = field(default_factory=lambda: {kind: Counter() for kind in ROWS})
    held: dict[UUID, Connection] = field(default_factory=dict)

    def move(self) -> None:
        """Make one move; a task that cannot make it stays as it is."""
        moves = (self.submit, self.submit, self.begin, self.begin_pack, self.write_step, self.retry_step, self.finish,
                 self.finish, self.finish_late, self.finish_pack, self.release, self.suspend, self.cancel, self.replay,
                 self.settle)  # fmt: skip
        with suppress(DBAPIError, IndexError, AssertionError):
            self.chance.choice(moves)()

    def any_of(self, *states: str) -> Any:
        return self.chance.choice(self.all_of(*states))

    def all_of(self, *states: str) -> Any:
        with self.driver.engine.connect() as connection:
            return connection.execute(CHOOSE, {"states": list(states), "held": list(self.held)}).all()

    def submit(self) -> None:
        self.driver.submit(self.chance.choice("AB"), key=self.chance.choice([None, "acme", "o'\"\\\n{}"]))
        self.driver.dispatch()

    def begin(self) -> None:
        task = self.any_of("queued")
        self.driver.claim(task.task_id, task.claim)

    def begin_pack(self) -> None:
        for task in self.all_of("queued"):
            claim_pack(self.driver, [task.task_id], task.claim)

    def write_step(self) -> None:
        task = self.any_of("running")
        write(self.driver, task.task_id, task.claim, step(self.chance.randrange(1, 4), cost_microdollars=5))

    def retry_step(self) -> None:
        """Its row keeps the last end only."""
        task = self.any_of("running")
        number = self.driver.sql("SELECT max(number) + 1 FROM steps WHERE task_id = :task", task=task.task_id) or 1
        for _ in range(2):
            write(self.driver, task.task_id, task.claim, step(number, "started"))
            write(self.driver, task.task_id, task.claim, step(number, "failed", error={"type": "x"}))
        write(self.driver, task.task_id, task.claim, step(number, "started"))
        self.gone["step"]["failed"] += 2

    def finish(self) -> None:
        task = self.any_of("running")
        state = self.chance.choice([State.SUCCEEDED, State.FAILED])
        self.driver.finish(task.task_id, task.claim, state=state)

    def finish_late(self) -> None:
        """The transaction has a low number, and commits after others."""
        task = self.any_of("running")
        connection = self.held[task.root_id] = self.driver.engine.connect()
        lifecycle.finish(connection, task.task_id, task.claim, State.SUCCEEDED, {})

    def finish_pack(self) -> None:
        running = self.all_of("running")
        claim = self.chance.choice(running).claim
        result = {"output": 1, "steps": [step(7, cost_microdollars=3)]}
        finish_pack(self.driver, [task.task_id for task in running if task.claim == claim][:5], claim, result)

    def release(self) -> None:
        task = self.any_of("running")
        how = self.chance.choice(["retried", "lost", "handed_back"])
        self.driver.release(task.task_id, task.claim, how=how, charged=False)
        self.driver.dispatch()

    def suspend(self) -> None:
        task = self.any_of("running")
        self.driver.suspend(task.task_id, task.claim, children=["B"] * self.chance.randrange(1, 4))
        self.driver.dispatch()

    def cancel(self) -> None:
        task = self.any_of("pending", "queued", "running", "waiting")
        self.driver.call(lifecycle.cancel, task.task_id, reason="test")

    def replay(self) -> None:
        task = self.any_of("succeeded", "failed")
        self.driver.sql(REPLAY, request='{"agent": "A", "input": {}}', task=task.task_id)
        self.driver.dispatch()

    def settle(self) -> None:
        """Commit what is late."""
        for connection in self.held.values():
            connection.commit()
            connection.close()
        self.held.clear()

    def age(self) -> None:
        """Make all tasks a year old, with ids from then."""
        with self.driver.engine.begin() as connection:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            connection.execute(text("UPDATE task_outcomes SET finished_at = finished_at - interval '1 year'"))
            for table, columns in [*IDS.items(), *((name, ("task_id",)) for name in OF_TASKS)]:
                for column in columns:
                    older = f"overlay({column}::text PLACING '0190' FROM 1)::uuid"
                    connection.execute(text(f"UPDATE {table} SET {column} = {older}"))

    def prune(self, settings: Settings) -> None:
        before = self.rows()
        assert sum(batch.tasks for batch in prune(self.driver.engine, settings))
        after = self.rows()
        for kind in ROWS:
            self.gone[kind] += before[kind] - after[kind]

    def rows(self) -> dict[str, Counter[str]]:
        with self.driver.engine.connect() as connection:
            return {
                kind: Counter({row[0]: row[1] for row in connection.execute(text(sql))}) for kind, sql in ROWS.items()
            }


@pytest.mark.parametrize("seed", [1, 2])
def test_counters_equal_a_recount_of_the_rows(driver: LifecycleDriver, settings: Settings, seed: int) -> None:
    load = Load(driver, random.Random(seed))
    done = threading.Event()

    def keep_counting() -> None:
        places = Places()
        while not done.wait(0.01):
            with suppress(OperationalError):
                count_ends(driver.engine, places)

    counting = threading.Thread(target=keep_counting)
    counting.start()
    try:
        for _ in range(ROUNDS):
            for _ in range(MOVES):
                load.move()
            load.settle()
            load.age()
            load.prune(settings)
    finally:
        load.settle()
        done.set()
        counting.join()
    catch_up(driver.engine)
    rows = load.rows()
    assert {"succeeded", "failed", "cancelled"} <= (rows["task"] + load.gone["task"]).keys()
    for kind in ROWS:
        for grain in ("total", "day", "hour"):
            assert totals(driver.engine, kind, grain=grain) == rows[kind] + load.gone[kind], (kind, grain)
