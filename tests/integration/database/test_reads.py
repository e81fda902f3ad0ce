"""What is done every second, or for every task, reads little, however much waits or has ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, text

from shared.tasks import lifecycle
from shared.tasks.states import State
from tests.conftest import Define
from tests.support.lifecycle_driver import NOOP, ByHand, agent

ENDED, PARKED = 900, 300
MANY = 2000

# Rows that a sequential scan returned and entries that indexes returned, in this transaction.
READ = text(
    """
    SELECT sum(pg_stat_get_xact_tuples_returned(c.oid)) FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid
        WHERE COALESCE(i.indrelid, c.oid) IN ('tasks'::regclass, 'task_status'::regclass, 'steps'::regclass)
    """
)


@pytest.fixture
def hand(database: Engine, define: Define) -> ByHand:
    define(NOOP, agent("A"), agent("B"))
    return ByHand(database)


def reads(hand: ByHand, step: Callable[..., Any], *arguments: Any, **options: Any) -> int:
    """How much of the tasks' tables a call reads. The call is committed."""

    def counted(connection: Connection) -> int:
        before = connection.scalar(READ)
        step(connection, *arguments, **options)
        return int(connection.scalar(READ) - before)

    return hand.call(counted)


def force(hand: ByHand, change: str, **values: Any) -> None:
    """Changes rows of `task_status` to what they could not become, as if they had got there."""

    def change_rows(connection: Connection) -> None:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.execute(text(f"UPDATE task_status SET {change}"), values)

    hand.call(change_rows)
    with hand.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM (ANALYZE) task_status, tasks")  # what is dead would be counted


def accepted(hand: ByHand, number: int, **fields: Any) -> list[UUID]:
    requests = [{"agent": "A", "input": {}, **fields}] * number
    return [each.task_id for each in hand.call(lifecycle.accept, requests)]


# ---------------------------------------------------------------------------------------------- conversations


@pytest.fixture
def talk(hand: ByHand) -> list[UUID]:
    """The tasks of a long conversation that have not ended, in the order of their turns; the first one is queued."""
    tasks = accepted(hand, ENDED + PARKED, conversation_id="c")
    force(hand, "state = 'succeeded', rank = 0 WHERE task_id = ANY (:ended)", ended=tasks[:ENDED])
    assert hand.call(lifecycle.heal_turns) == 1
    assert [message.task_id for message in hand.dispatch()] == tasks[ENDED : ENDED + 1]
    return tasks[ENDED:]


def test_a_turn_in_a_long_conversation_reads_little(hand: ByHand, talk: list[UUID]) -> None:
    request = {"agent": "A", "input": {}, "conversation_id": "c"}
    assert reads(hand, lifecycle.accept, [request]) < 50
    assert reads(hand, lifecycle.claim, talk[0], 0, hand.worker) < 50
    assert reads(hand, lifecycle.finish, talk[0], 1, State.SUCCEEDED, {}) < 50
    assert [message.task_id for message in hand.dispatch()] == talk[1:2]


def test_looking_for_missed_turns_reads_who_is_parked_once(hand: ByHand, talk: list[UUID]) -> None:
    accepted(hand, 2, conversation_id="d")
    hand.sql("UPDATE task_status SET rank = minion_parked() WHERE state = 'pending'")
    assert reads(hand, lifecycle.heal_turns) < 3 * PARKED
    assert len(hand.dispatch()) == 1, "the first of the other conversation"


# ---------------------------------------------------------------------------------------------- messages


def test_looking_for_lost_messages_reads_what_is_under_way_once(hand: ByHand) -> None:
    tasks = accepted(hand, PARKED)
    hand.dispatch()
    for task in tasks[:50]:
        hand.claim(task)
    hand.sql("UPDATE task_status SET published_at = now() - interval '1 h'")
    again = {"lease": 10.0, "patience": 5.0, "empty_queues": []}
    assert reads(hand, lifecycle.republish, **again) < 3 * PARKED


# ---------------------------------------------------------------------------------------------- waits


@pytest.fixture
def waiting(hand: ByHand) -> list[UUID]:
    """Tasks that wait for a sub-task, since long ago. Only the last of them has lost count: it has no open step."""
    tasks = sorted(accepted(hand, MANY))
    changes = "wait_reason = 'subtask', open_waits = 1, updated_at = now() - interval '1 h'"
    force(hand, f"state = 'waiting', capability = 'work', {changes}")
    hand.sql(
        "INSERT INTO steps (task_id, number, kind, name, status, effect, request_hash, claim) "
        "SELECT id, 1, 'subtask', 'A', 'started', 'pure', '', 1 FROM tasks WHERE id <> :last",
        last=tasks[-1],
    )
    return tasks


def test_looking_who_is_due_does_not_read_who_waits(hand: ByHand, waiting: list[UUID]) -> None:
    assert reads(hand, lifecycle.wake_due) < 50


def test_waits_are_looked_at_a_part_at_a_time(hand: ByHand, waiting: list[UUID]) -> None:
    assert reads(hand, lifecycle.heal_waits, most=100) < 500
    most = MANY // 2 + 1
    assert hand.call(lifecycle.heal_waits, most=most) == (0, waiting[most - 1])
    assert hand.call(lifecycle.heal_waits, after=waiting[most - 1], most=most) == (1, None)
    assert hand.state(waiting[-1]) == "pending"


def test_a_wait_for_nothing_is_over(hand: ByHand, waiting: list[UUID]) -> None:
    """As release 0.1 may have left a task."""
    hand.sql("UPDATE task_status SET open_waits = 0 WHERE task_id = :last", last=waiting[-1])
    assert hand.call(lifecycle.heal_waits, most=MANY + 1) == (1, None)
