"""Signals, timers and sub-tasks that one task waits for together. Each test takes the steps by hand."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine

from shared.errors import Conflict, TooLarge
from shared.tasks import lifecycle
from shared.tasks.states import State
from tests.conftest import Define
from tests.support.lifecycle_driver import NOOP, ByHand, agent, at_once


@pytest.fixture
def hand(database: Engine, define: Define) -> ByHand:
    define(NOOP, agent("A"), agent("B"))
    return ByHand(database)


def signal(name: str, seconds: float | None = None) -> dict[str, Any]:
    """A wait for a signal, with a time-out perhaps."""
    return {"name": name, "signal": True, "seconds": seconds}


TIMER = {"name": "timer", "signal": False, "seconds": 3600.0}


def suspend(hand: ByHand, task: UUID, *waits: dict[str, Any], children: int = 0, claim: int = 1) -> State | None:
    """Suspends a task for sub-tasks and then these waits, numbered from the claim's hundred on."""
    first = claim * 100
    wanted = [
        {"step": first + n, "name": "B", "request_hash": "h", "request": {"agent": "B", "input": {}}}
        for n in range(children)
    ]
    numbered = [{"step": n, "request_hash": "h", **wait} for n, wait in enumerate(waits, first + children)]
    return hand.call(lifecycle.suspend, task, claim, {}, wanted, numbered)


def send(hand: ByHand, task: UUID, name: str, payload: Any = None) -> State:
    """Sends a signal."""
    return hand.call(lifecycle.signal, task, name, payload)


def outputs(hand: ByHand, task: UUID) -> list[Any]:
    """What the waits gave, in the order of their steps; None for one that is open."""
    rows = hand.sql(
        "SELECT json_agg(COALESCE(output->'payload', output) ORDER BY number) FROM steps WHERE task_id = :task",
        task=task,
    )
    return list(rows)


def pass_time(hand: ByHand) -> int:
    """An hour goes by, and the orchestrator looks."""
    hand.sql("UPDATE steps SET due_at = due_at - interval '1 h'")
    hand.sql("UPDATE task_status SET due_at = due_at - interval '1 h' WHERE due_at IS NOT NULL")
    return hand.call(lifecycle.wake_due)


@pytest.mark.parametrize("when", ["scheduled", "pending", "queued", "running", "backoff"])
def test_a_signal_is_kept_until_it_is_waited_for(hand: ByHand, when: str) -> None:
    task = hand.submit(run_at="2100-01-01T00:00:00Z" if when == "scheduled" else None)
    claim = 0
    if when == "queued":
        hand.dispatch()
    if when in ("running", "backoff"):
        claim = hand.again(task)
    if when == "backoff":
        hand.release(task, delay=3600.0)
    assert send(hand, task, "go", when) == ("waiting" if when == "backoff" else when)
    if when == "scheduled":
        hand.sql("UPDATE task_status SET due_at = now()")
        hand.call(lifecycle.wake_due)
    if when == "backoff":
        pass_time(hand)
    claim = claim if when == "running" else hand.again(task)
    assert suspend(hand, task, signal("go"), claim=claim) == State.PENDING
    assert outputs(hand, task) == [when]


def test_each_wait_takes_one_signal_the_oldest_first(hand: ByHand) -> None:
    task = hand.run()
    for payload in (1, 2, 3):
        send(hand, task, "go", payload)
    assert suspend(hand, task, signal("go"), signal("go")) == State.PENDING
    assert outputs(hand, task) == [1, 2]
    hand.again(task)
    assert suspend(hand, task, signal("go"), signal("go"), claim=2) == State.WAITING
    assert hand.row(task)["open_waits"] == 1
    assert send(hand, task, "go", 4) == State.PENDING
    assert outputs(hand, task) == [1, 2, 3, 4]


def test_signals_that_come_at_once_are_each_taken_once(hand: ByHand) -> None:
    task = hand.run()
    suspend(hand, task, *[signal("go")] * 8)
    states = at_once(*[lambda n=n: send(hand, task, "go", n) for n in range(8)])
    assert sorted(states) == ["pending"] + ["waiting"] * 7
    assert sorted(outputs(hand, task)) == list(range(8))


def test_a_signal_of_another_name_wakes_nobody(hand: ByHand) -> None:
    task = hand.run()
    suspend(hand, task, signal("go"))
    assert send(hand, task, "stop") == State.WAITING


def test_a_payload_may_be_nothing(hand: ByHand) -> None:
    task = hand.run()
    suspend(hand, task, signal("go"))
    assert send(hand, task, "go") == State.PENDING
    assert hand.sql("SELECT output->>'signal' FROM steps") == "go"


@pytest.mark.parametrize("end", ["finish", "cancel"])
def test_a_task_that_has_ended_takes_no_signals(hand: ByHand, end: str) -> None:
    task = hand.run()
    if end == "finish":
        hand.finish(task)
    else:
        suspend(hand, task, signal("go"))
        hand.call(lifecycle.cancel, task, reason="x")
    with pytest.raises(Conflict, match="accepts no more signals"):
        send(hand, task, "go")


def test_a_payload_that_is_too_large_is_refused_and_wakes_nobody(hand: ByHand) -> None:
    task = hand.run()
    suspend(hand, task, signal("go"))
    with pytest.raises(TooLarge):
        send(hand, task, "go", "x" * (2 << 20))
    assert (hand.state(task), hand.sql("SELECT count(*) FROM signals")) == ("waiting", 0)


def test_a_wait_that_timed_out_leaves_the_signal_for_the_next(hand: ByHand) -> None:
    task = hand.run()
    suspend(hand, task, signal("go", 3600.0))
    assert hand.call(lifecycle.wake_due) == 0
    assert pass_time(hand) == 1
    assert outputs(hand, task) == [{"timed_out": True}]
    send(hand, task, "go", "late")
    assert hand.again(task) == 2
    assert suspend(hand, task, signal("go"), claim=2) == State.PENDING
    assert outputs(hand, task) == [{"timed_out": True}, "late"]


def test_a_signal_and_a_time_out_at_once_wake_the_task_once(hand: ByHand) -> None:
    for _ in range(5):
        task = hand.run()
        suspend(hand, task, signal("go", 3600.0))
        hand.sql("UPDATE steps SET due_at = now() WHERE task_id = :task", task=task)
        hand.sql("UPDATE task_status SET due_at = now() WHERE task_id = :task", task=task)
        at_once(lambda task=task: send(hand, task, "go", "in time"), *[lambda: hand.call(lifecycle.wake_due)] * 3)
        assert hand.state(task) == "pending"
        assert outputs(hand, task)[0] in ("in time", {"timed_out": True})
        hand.call(lifecycle.cancel, task, reason="next round")


def test_sub_tasks_signals_and_timers_are_waited_for_together(hand: ByHand) -> None:
    task = hand.run()
    assert suspend(hand, task, signal("go"), signal("stop", 3600.0), TIMER, children=2) == State.WAITING
    assert hand.row(task)["open_waits"] == 5
    hand.dispatch()
    children = [row["task_id"] for row in hand.call(running, task)]
    hand.claim(children[0])
    hand.finish(children[0])
    assert send(hand, task, "go", 1) == State.WAITING
    assert pass_time(hand) == 0
    assert (hand.row(task)["open_waits"], hand.row(task)["due_at"]) == (1, None)
    assert hand.call(lifecycle.heal_waits) == (0, None)
    hand.call(lifecycle.cancel, children[1], reason="enough")
    assert hand.state(task) == "pending"
    assert hand.again(task) == 2
    assert outputs(hand, task)[2:] == [1, {"timed_out": True}, {"timed_out": True}]


def running(connection: Any, task: UUID) -> list[dict[str, Any]]:
    """The sub-tasks of a task."""
    rows = connection.exec_driver_sql("SELECT id AS task_id FROM tasks WHERE parent_id = %s ORDER BY id", (task,))
    return [dict(row) for row in rows.mappings()]


def test_timers_end_one_after_the_other(hand: ByHand) -> None:
    task = hand.run()
    suspend(hand, task, TIMER, {**TIMER, "seconds": 7200.0})
    assert pass_time(hand) == 0
    assert hand.row(task)["open_waits"] == 1
    assert hand.row(task)["due_at"] is not None
    assert pass_time(hand) == 1


def test_a_cancelled_task_is_not_suspended(hand: ByHand) -> None:
    task = hand.run()
    hand.call(lifecycle.cancel, task, reason="enough")
    assert suspend(hand, task, signal("go"), children=1) == State.CANCELLED
    assert hand.sql("SELECT count(*) FROM tasks") == 1


def test_a_wait_that_lost_count_is_healed(hand: ByHand) -> None:
    task = hand.run()
    suspend(hand, task, signal("go"))
    hand.sql("UPDATE steps SET status = 'finished'")
    assert hand.call(lifecycle.heal_waits) == (0, None), "not before ten seconds: somebody may be about to count down"
    hand.sql("UPDATE task_status SET updated_at = now() - interval '1 min'")
    assert hand.call(lifecycle.heal_waits) == (1, None)
    assert hand.state(task) == "pending"


def test_nothing_is_healed_while_something_is_open(hand: ByHand) -> None:
    task = hand.run()
    suspend(hand, task, signal("go"), children=1)
    hand.sql("UPDATE task_status SET updated_at = now() - interval '1 h'")
    assert hand.call(lifecycle.heal_waits) == (0, None)
    assert hand.state(task) == "waiting"
