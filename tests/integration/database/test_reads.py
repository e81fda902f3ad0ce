"""Frequent queries read little, however many tasks wait or have ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, text

from shared.tasks import lifecycle
from shared.tasks.states import State
from tests.support.lifecycle_driver import LifecycleDriver
from tests.support.processes import wait_until

ENDED, PARKED = 900, 300
MANY = 2000

# Rows that a sequential scan returned and entries that indexes returned, in this transaction.
READ = text(
    """
    SELECT sum(pg_stat_get_xact_tuples_returned(c.oid)) FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid
        WHERE COALESCE(i.indrelid, c.oid) IN ('tasks'::regclass, 'task_status'::regclass, 'steps'::regclass)
    """
)

OTHERS = text("SELECT count(*) FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid()")


def reads(driver: LifecycleDriver, step: Callable[..., Any], *arguments: Any, **options: Any) -> int:
    """Return how much of the tasks' tables a call reads. The call is committed."""

    def counted(connection: Connection) -> int:
        before = connection.scalar(READ)
        step(connection, *arguments, **options)
        return int(connection.scalar(READ) - before)

    return driver.call(counted)


def force(driver: LifecycleDriver, change: str, **values: Any) -> None:
    """Changes rows of `task_status` to what they could not become, as if they had got there."""

    def change_rows(connection: Connection) -> None:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.execute(text(f"UPDATE task_status SET {change}"), values)

    driver.call(change_rows)
    vacuum(driver)


def vacuum(driver: LifecycleDriver) -> None:
    """Remove dead rows, which would be counted, once no other session, such as an autovacuum, may still see them."""
    with driver.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        wait_until(lambda: connection.scalar(OTHERS) == 0, "no session has an earlier snapshot")
        connection.exec_driver_sql("VACUUM (ANALYZE, INDEX_CLEANUP ON) task_status, tasks")


def accepted(driver: LifecycleDriver, number: int, **fields: Any) -> list[UUID]:
    requests = [{"agent": "A", "input": {}, **fields}] * number
    return [each.task_id for each in driver.call(lifecycle.accept, requests)]


# ---------------------------------------------------------------------------------------------- conversations


@pytest.fixture
def talk(driver: LifecycleDriver) -> list[UUID]:
    """The tasks of a long conversation that have not ended, in the order of their turns; the first one is queued."""
    tasks = accepted(driver, ENDED + PARKED, conversation_id="c")
    force(driver, "state = 'succeeded', rank = 0 WHERE task_id = ANY (:ended)", ended=tasks[:ENDED])
    assert driver.call(lifecycle.heal_turns) == 1
    assert [message.task_id for message in driver.dispatch()] == tasks[ENDED : ENDED + 1]
    return tasks[ENDED:]


def test_a_turn_in_a_long_conversation_reads_little(driver: LifecycleDriver, talk: list[UUID]) -> None:
    request = {"agent": "A", "input": {}, "conversation_id": "c"}
    assert reads(driver, lifecycle.accept, [request]) < 50
    assert reads(driver, lifecycle.claim, talk[0], 0, driver.worker) < 50
    assert reads(driver, lifecycle.finish, talk[0], 1, State.SUCCEEDED, {}) < 50
    assert [message.task_id for message in driver.dispatch()] == talk[1:2]


def test_healing_positions_reads_waiting_tasks_once(driver: LifecycleDriver, talk: list[UUID]) -> None:
    accepted(driver, 2, conversation_id="d")
    driver.sql("UPDATE task_status SET rank = minion_parked() WHERE state = 'pending'")
    assert reads(driver, lifecycle.heal_turns) < 3 * PARKED
    assert len(driver.dispatch()) == 1, "the first of the other conversation"


# ---------------------------------------------------------------------------------------------- messages


def test_republishing_reads_queued_tasks_once(driver: LifecycleDriver) -> None:
    tasks = accepted(driver, PARKED)
    driver.dispatch()
    for task in tasks[:50]:
        driver.claim(task)
    force(driver, "published_at = now() - interval '1 h'")
    again = {"lease": 10.0, "patience": 5.0, "empty_queues": []}
    assert reads(driver, lifecycle.republish, **again) < 3 * PARKED


# ---------------------------------------------------------------------------------------------- waits


@pytest.fixture
def waiting(driver: LifecycleDriver) -> list[UUID]:
    """Tasks that wait for a sub-task, since long ago. Only the last of them has lost count: it has no open step."""
    tasks = sorted(accepted(driver, MANY))
    changes = "wait_reason = 'subtask', open_waits = 1, updated_at = now() - interval '1 h'"
    force(driver, f"state = 'waiting', capability = 'work', {changes}")
    driver.sql(
        "INSERT INTO steps (task_id, number, kind, name, status, effect, request_hash, claim) "
        "SELECT id, 1, 'subtask', 'A', 'started', 'pure', '', 1 FROM tasks WHERE id <> :last",
        last=tasks[-1],
    )
    return tasks


def test_waking_due_tasks_does_not_read_waiting_ones(driver: LifecycleDriver, waiting: list[UUID]) -> None:
    assert reads(driver, lifecycle.wake_due) < 50


def test_healing_waits_reads_a_part_at_a_time(driver: LifecycleDriver, waiting: list[UUID]) -> None:
    assert reads(driver, lifecycle.heal_waits, limit=100) < 500
    most = MANY // 2 + 1
    assert driver.call(lifecycle.heal_waits, limit=most) == (0, waiting[most - 1])
    assert driver.call(lifecycle.heal_waits, after=waiting[most - 1], limit=most) == (1, None)
    assert driver.state(waiting[-1]) == "pending"


def test_wait_without_open_step_is_healed(driver: LifecycleDriver, waiting: list[UUID]) -> None:
    """As release 0.1 may have left a task."""
    driver.sql("UPDATE task_status SET open_waits = 0 WHERE task_id = :last", last=waiting[-1])
    assert driver.call(lifecycle.heal_waits, limit=MANY + 1) == (1, None)


# ---------------------------------------------------------------------------------------------- stops and budgets

# The same, of the tables that are read before a step begins.
RULES_READ = text(
    """
    SELECT sum(pg_stat_get_xact_tuples_returned(c.oid)) FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid
        WHERE COALESCE(i.indrelid, c.oid) IN ('stops'::regclass, 'standing_budgets'::regclass)
    """
)


def rules_read(driver: LifecycleDriver, task: UUID, *steps: dict[str, Any]) -> int:
    """Return how much a write of steps reads of stops and standing budgets."""

    def counted(connection: Connection) -> int:
        before = connection.scalar(RULES_READ)
        assert lifecycle.write_steps(connection, task, 1, list(steps)) == {"cancel": False}  # type: ignore[arg-type]
        return int(connection.scalar(RULES_READ) - before)

    return driver.call(counted)


def test_beginning_a_step_reads_few_stops_and_budgets(driver: LifecycleDriver) -> None:
    task = driver.run(key="tenant")
    step = {"number": 1, "kind": "model_call", "name": "m", "status": "started", "effect": "unsafe", "request_hash": ""}
    assert rules_read(driver, task, step) == 0
    driver.sql(
        "INSERT INTO stops (scope, namespace, name) SELECT 'key', 'default', n::text FROM generate_series(1, 2000) n"
    )
    driver.sql(
        "INSERT INTO standing_budgets (scope, namespace, name, period, timezone, tokens, on_breach) "
        "SELECT 'agent', 'default', n::text, 'day', 'UTC', 1, 'wait' FROM generate_series(1, 2000) n"
    )
    assert rules_read(driver, task, {**step, "number": 2}) < 10
    assert rules_read(driver, task, {**step, "status": "finished"}) < 5
