"""Unique keys: while a task holds one, asking for another task gives that one."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import pytest

from shared.errors import IdempotencyConflict, InvalidInput, UnknownAgent
from shared.tasks import lifecycle
from shared.tasks.lifecycle import Accepted
from shared.tasks.states import State
from tests.support.lifecycle_driver import LifecycleDriver, concurrently

FAILED = {"type": "test", "message": "no"}


def ask(driver: LifecycleDriver, agent: str = "A", key: str = "u", **fields: object) -> Accepted:
    """Asks for a task under a unique key."""
    request = {"agent": agent, "input": {}, "unique_key": key, **fields}
    [accepted] = driver.call(lifecycle.accept, [request])
    return accepted


def run(driver: LifecycleDriver, task: UUID) -> None:
    """Dispatches and claims it."""
    driver.again(task)


ENDS: dict[str, Callable[[LifecycleDriver, UUID], object]] = {
    "succeeded": lambda driver, task: driver.finish(task),
    "failed": lambda driver, task: driver.finish(task, state=State.FAILED),
    "cancelled": lambda driver, task: (driver.call(lifecycle.cancel, task, reason="x"), driver.finish(task)),
    "expired": lambda driver, task: driver.call(lifecycle.expire, task),
    "used up": lambda driver, task: [
        driver.release(task, claim or driver.again(task), result={"error": FAILED}) for claim in (1, 0, 0)
    ],
}


@pytest.mark.parametrize("end", ENDS)
def test_a_key_is_held_until_the_task_ends(driver: LifecycleDriver, end: str) -> None:
    first = ask(driver)
    assert first.created
    assert ask(driver) == Accepted(first.task_id, False)
    run(driver, first.task_id)
    assert ask(driver, "B") == Accepted(first.task_id, False)
    ENDS[end](driver, first.task_id)
    assert ask(driver).created


def test_a_key_may_be_held_until_the_task_starts(driver: LifecycleDriver) -> None:
    first = ask(driver, unique_while="pending")
    driver.dispatch()
    assert not ask(driver).created
    driver.claim(first.task_id)
    second = ask(driver, unique_while="pending")
    assert second.created
    # The first one does not take it again when it goes back in line, nor does its end let go of the other's.
    driver.release(first.task_id, charged=False)
    run(driver, first.task_id)
    driver.finish(first.task_id, 2)
    assert ask(driver) == Accepted(second.task_id, False)


def test_a_scheduled_and_a_waiting_task_hold_their_keys(driver: LifecycleDriver) -> None:
    later = ask(driver, key="later", run_at="2100-01-01T00:00:00Z")
    waiting = ask(driver, key="waiting")
    run(driver, waiting.task_id)
    driver.release(waiting.task_id, delay=60.0)
    assert [ask(driver, key=key).task_id for key in ("later", "waiting")] == [later.task_id, waiting.task_id]


def test_other_keys_are_apart(driver: LifecycleDriver) -> None:
    assert ask(driver, key="u").created
    assert ask(driver, key="v").created


def test_one_of_many_submits_at_once_makes_the_task(driver: LifecycleDriver) -> None:
    for number in range(5):
        answers = concurrently(*[lambda number=number: ask(driver, key=f"u{number}")] * 8)
        assert len({answer.task_id for answer in answers}) == 1
        assert [answer.created for answer in answers].count(True) == 1
    assert driver.sql("SELECT count(*) FROM tasks") == 5


def test_submits_and_the_end_of_the_holder_at_once(driver: LifecycleDriver) -> None:
    """Each gets the holder or the one that came after it; never two that live."""
    for _ in range(5):
        first = ask(driver).task_id
        run(driver, first)
        answers = concurrently(lambda first=first: driver.finish(first), *[lambda: ask(driver)] * 7)[1:]
        made = [answer.task_id for answer in answers if isinstance(answer, Accepted) and answer.created]
        assert len(made) <= 1
        assert {answer.task_id for answer in answers if isinstance(answer, Accepted)} <= {first, *made}
        for task in made:
            driver.call(lifecycle.cancel, task, reason="next round")


def test_many_in_one_request(driver: LifecycleDriver) -> None:
    requests = [{"agent": "A", "input": {}, "unique_key": key} for key in ("u", "v", "u")]
    first, second, third = driver.call(lifecycle.accept, requests)
    assert (first.task_id, third.created) == (third.task_id, False)
    assert second.created


def test_idempotency_key_stays_with_its_task(driver: LifecycleDriver) -> None:
    first = ask(driver)
    assert ask(driver, idempotency_key="i") == Accepted(first.task_id, False)
    run(driver, first.task_id)
    driver.finish(first.task_id)
    assert ask(driver, idempotency_key="i") == Accepted(first.task_id, False)
    second = ask(driver, idempotency_key="j")
    assert second.created
    with pytest.raises(IdempotencyConflict):
        ask(driver, "B", idempotency_key="j")


def test_a_refused_task_holds_no_key(driver: LifecycleDriver) -> None:
    with pytest.raises(UnknownAgent):
        ask(driver, "Nobody")
    assert ask(driver).created


@pytest.mark.parametrize("fields", [{"key": ""}, {"key": "x" * 256}, {"unique_while": "ever"}])
def test_a_key_that_makes_no_sense_is_refused(driver: LifecycleDriver, fields: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match="unique_key must have 1 to 255 characters"):
        ask(driver, **fields)


def test_a_task_that_is_deleted_lets_go(driver: LifecycleDriver) -> None:
    first = ask(driver)
    driver.sql("DELETE FROM tasks WHERE id = :task", task=first.task_id)
    assert ask(driver).created
