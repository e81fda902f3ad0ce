"""Unique keys: while a task holds one, asking for another task gives that one."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import Engine

from shared.errors import IdempotencyConflict, InvalidInput, UnknownAgent
from shared.tasks import lifecycle
from shared.tasks.lifecycle import Accepted
from shared.tasks.states import State
from tests.conftest import Define
from tests.support.lifecycle_driver import NOOP, ByHand, agent, at_once

FAILED = {"type": "test", "message": "no"}


@pytest.fixture
def hand(database: Engine, define: Define) -> ByHand:
    define(NOOP, agent("A"), agent("B"))
    return ByHand(database)


def ask(hand: ByHand, agent: str = "A", key: str = "u", **fields: object) -> Accepted:
    """Asks for a task under a unique key."""
    request = {"agent": agent, "input": {}, "unique_key": key, **fields}
    [accepted] = hand.call(lifecycle.accept, [request])
    return accepted


def run(hand: ByHand, task: UUID) -> None:
    """Dispatches and claims it."""
    hand.again(task)


ENDS: dict[str, Callable[[ByHand, UUID], object]] = {
    "succeeded": lambda hand, task: hand.finish(task),
    "failed": lambda hand, task: hand.finish(task, state=State.FAILED),
    "cancelled": lambda hand, task: (hand.call(lifecycle.cancel, task, reason="x"), hand.finish(task)),
    "expired": lambda hand, task: hand.call(lifecycle.expire, task),
    "used up": lambda hand, task: [
        hand.release(task, claim or hand.again(task), result={"error": FAILED}) for claim in (1, 0, 0)
    ],
}


@pytest.mark.parametrize("end", ENDS)
def test_a_key_is_held_until_the_task_ends(hand: ByHand, end: str) -> None:
    first = ask(hand)
    assert first.created
    assert ask(hand) == Accepted(first.task_id, False)
    run(hand, first.task_id)
    assert ask(hand, "B") == Accepted(first.task_id, False)
    ENDS[end](hand, first.task_id)
    assert ask(hand).created


def test_a_key_may_be_held_until_the_task_starts(hand: ByHand) -> None:
    first = ask(hand, unique_while="pending")
    hand.dispatch()
    assert not ask(hand).created
    hand.claim(first.task_id)
    second = ask(hand, unique_while="pending")
    assert second.created
    # The first one does not take it again when it goes back in line, nor does its end let go of the other's.
    hand.release(first.task_id, charged=False)
    run(hand, first.task_id)
    hand.finish(first.task_id, 2)
    assert ask(hand) == Accepted(second.task_id, False)


def test_a_scheduled_and_a_waiting_task_hold_their_keys(hand: ByHand) -> None:
    later = ask(hand, key="later", run_at="2100-01-01T00:00:00Z")
    waiting = ask(hand, key="waiting")
    run(hand, waiting.task_id)
    hand.release(waiting.task_id, delay=60.0)
    assert [ask(hand, key=key).task_id for key in ("later", "waiting")] == [later.task_id, waiting.task_id]


def test_other_keys_are_apart(hand: ByHand) -> None:
    assert ask(hand, key="u").created
    assert ask(hand, key="v").created


def test_one_of_many_submits_at_once_makes_the_task(hand: ByHand) -> None:
    for number in range(5):
        answers = at_once(*[lambda number=number: ask(hand, key=f"u{number}")] * 8)
        assert len({answer.task_id for answer in answers}) == 1
        assert [answer.created for answer in answers].count(True) == 1
    assert hand.sql("SELECT count(*) FROM tasks") == 5


def test_submits_and_the_end_of_the_holder_at_once(hand: ByHand) -> None:
    """Each gets the holder or the one that came after it; never two that live."""
    for _ in range(5):
        first = ask(hand).task_id
        run(hand, first)
        answers = at_once(lambda first=first: hand.finish(first), *[lambda: ask(hand)] * 7)[1:]
        made = [answer.task_id for answer in answers if isinstance(answer, Accepted) and answer.created]
        assert len(made) <= 1
        assert {answer.task_id for answer in answers if isinstance(answer, Accepted)} <= {first, *made}
        for task in made:
            hand.call(lifecycle.cancel, task, reason="next round")


def test_many_in_one_request(hand: ByHand) -> None:
    requests = [{"agent": "A", "input": {}, "unique_key": key} for key in ("u", "v", "u")]
    first, second, third = hand.call(lifecycle.accept, requests)
    assert (first.task_id, third.created) == (third.task_id, False)
    assert second.created


def test_an_idempotency_key_stays_with_the_task_that_it_was_given(hand: ByHand) -> None:
    first = ask(hand)
    assert ask(hand, idempotency_key="i") == Accepted(first.task_id, False)
    run(hand, first.task_id)
    hand.finish(first.task_id)
    assert ask(hand, idempotency_key="i") == Accepted(first.task_id, False)
    second = ask(hand, idempotency_key="j")
    assert second.created
    with pytest.raises(IdempotencyConflict):
        ask(hand, "B", idempotency_key="j")


def test_a_refused_task_holds_no_key(hand: ByHand) -> None:
    with pytest.raises(UnknownAgent):
        ask(hand, "Nobody")
    assert ask(hand).created


@pytest.mark.parametrize("fields", [{"key": ""}, {"key": "x" * 256}, {"unique_while": "ever"}])
def test_a_key_that_makes_no_sense_is_refused(hand: ByHand, fields: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match="unique_key must have 1 to 255 characters"):
        ask(hand, **fields)


def test_a_task_that_is_deleted_lets_go(hand: ByHand) -> None:
    first = ask(hand)
    hand.sql("DELETE FROM tasks WHERE id = :task", task=first.task_id)
    assert ask(hand).created
