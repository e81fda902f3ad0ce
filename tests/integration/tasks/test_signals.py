"""Signals, timers and sub-tasks that one task waits for together. Tests use the lifecycle driver."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from shared.errors import Conflict, TooLarge
from shared.tasks import lifecycle
from shared.tasks.states import State
from tests.support.lifecycle_driver import LifecycleDriver, concurrently


def signal(name: str, seconds: float | None = None) -> dict[str, Any]:
    """A wait for a signal, with a time-out perhaps."""
    return {"name": name, "signal": True, "seconds": seconds}


TIMER = {"name": "timer", "signal": False, "seconds": 3600.0}


def suspend(
    driver: LifecycleDriver, task: UUID, *waits: dict[str, Any], children: int = 0, claim: int = 1
) -> State | None:
    """Suspends a task for sub-tasks and then these waits, numbered from the claim's hundred on."""
    first = claim * 100
    wanted = [
        {"step": first + n, "name": "B", "request_hash": "h", "request": {"agent": "B", "input": {}}}
        for n in range(children)
    ]
    numbered = [{"step": n, "request_hash": "h", **wait} for n, wait in enumerate(waits, first + children)]
    return driver.call(lifecycle.suspend, task, claim, {}, wanted, numbered)


def send(driver: LifecycleDriver, task: UUID, name: str, payload: Any = None) -> State:
    """Sends a signal."""
    return driver.call(lifecycle.signal, task, name, payload)


def outputs(driver: LifecycleDriver, task: UUID) -> list[Any]:
    """Return the outputs of the waits, in the order of their steps; None for an open one."""
    rows = driver.sql(
        "SELECT json_agg(COALESCE(output->'payload', output) ORDER BY number) FROM steps WHERE task_id = :task",
        task=task,
    )
    return list(rows)


def pass_time(driver: LifecycleDriver) -> int:
    """An hour goes by, and the orchestrator looks."""
    driver.sql("UPDATE steps SET due_at = due_at - interval '1 h'")
    driver.sql("UPDATE task_status SET due_at = due_at - interval '1 h' WHERE due_at IS NOT NULL")
    return driver.call(lifecycle.wake_due)


@pytest.mark.parametrize("when", ["scheduled", "pending", "queued", "running", "backoff"])
def test_signal_is_stored_until_awaited(driver: LifecycleDriver, when: str) -> None:
    task = driver.submit(run_at="2100-01-01T00:00:00Z" if when == "scheduled" else None)
    claim = 0
    if when == "queued":
        driver.dispatch()
    if when in ("running", "backoff"):
        claim = driver.again(task)
    if when == "backoff":
        driver.release(task, delay=3600.0)
    assert send(driver, task, "go", when) == ("waiting" if when == "backoff" else when)
    if when == "scheduled":
        driver.sql("UPDATE task_status SET due_at = now()")
        driver.call(lifecycle.wake_due)
    if when == "backoff":
        pass_time(driver)
    claim = claim if when == "running" else driver.again(task)
    assert suspend(driver, task, signal("go"), claim=claim) == State.PENDING
    assert outputs(driver, task) == [when]


def test_each_wait_takes_the_oldest_signal(driver: LifecycleDriver) -> None:
    task = driver.run()
    for payload in (1, 2, 3):
        send(driver, task, "go", payload)
    assert suspend(driver, task, signal("go"), signal("go")) == State.PENDING
    assert outputs(driver, task) == [1, 2]
    driver.again(task)
    assert suspend(driver, task, signal("go"), signal("go"), claim=2) == State.WAITING
    assert driver.row(task)["open_waits"] == 1
    assert send(driver, task, "go", 4) == State.PENDING
    assert outputs(driver, task) == [1, 2, 3, 4]


def test_concurrent_signals_are_each_taken_once(driver: LifecycleDriver) -> None:
    task = driver.run()
    suspend(driver, task, *[signal("go")] * 8)
    states = concurrently(*[lambda n=n: send(driver, task, "go", n) for n in range(8)])
    assert sorted(states) == ["pending"] + ["waiting"] * 7
    assert sorted(outputs(driver, task)) == list(range(8))


def test_signal_of_another_name_wakes_no_task(driver: LifecycleDriver) -> None:
    task = driver.run()
    suspend(driver, task, signal("go"))
    assert send(driver, task, "stop") == State.WAITING


def test_payload_may_be_empty(driver: LifecycleDriver) -> None:
    task = driver.run()
    suspend(driver, task, signal("go"))
    assert send(driver, task, "go") == State.PENDING
    assert driver.sql("SELECT output->>'signal' FROM steps") == "go"


@pytest.mark.parametrize("end", ["finish", "cancel"])
def test_ended_task_accepts_no_signals(driver: LifecycleDriver, end: str) -> None:
    task = driver.run()
    if end == "finish":
        driver.finish(task)
    else:
        suspend(driver, task, signal("go"))
        driver.call(lifecycle.cancel, task, reason="x")
    with pytest.raises(Conflict, match="accepts no more signals"):
        send(driver, task, "go")


def test_too_large_payload_is_refused(driver: LifecycleDriver) -> None:
    task = driver.run()
    suspend(driver, task, signal("go"))
    with pytest.raises(TooLarge):
        send(driver, task, "go", "x" * (2 << 20))
    assert (driver.state(task), driver.sql("SELECT count(*) FROM signals")) == ("waiting", 0)


def test_a_wait_that_timed_out_leaves_the_signal_for_the_next(driver: LifecycleDriver) -> None:
    task = driver.run()
    suspend(driver, task, signal("go", 3600.0))
    assert driver.call(lifecycle.wake_due) == 0
    assert pass_time(driver) == 1
    assert outputs(driver, task) == [{"timed_out": True}]
    send(driver, task, "go", "late")
    assert driver.again(task) == 2
    assert suspend(driver, task, signal("go"), claim=2) == State.PENDING
    assert outputs(driver, task) == [{"timed_out": True}, "late"]


def test_a_signal_and_a_time_out_at_once_wake_the_task_once(driver: LifecycleDriver) -> None:
    for _ in range(5):
        task = driver.run()
        suspend(driver, task, signal("go", 3600.0))
        driver.sql("UPDATE steps SET due_at = now() WHERE task_id = :task", task=task)
        driver.sql("UPDATE task_status SET due_at = now() WHERE task_id = :task", task=task)
        concurrently(
            lambda task=task: send(driver, task, "go", "in time"), *[lambda: driver.call(lifecycle.wake_due)] * 3
        )
        assert driver.state(task) == "pending"
        assert outputs(driver, task)[0] in ("in time", {"timed_out": True})
        driver.call(lifecycle.cancel, task, reason="next round")


def test_sub_tasks_signals_and_timers_are_waited_for_together(driver: LifecycleDriver) -> None:
    task = driver.run()
    assert suspend(driver, task, signal("go"), signal("stop", 3600.0), TIMER, children=2) == State.WAITING
    assert driver.row(task)["open_waits"] == 5
    driver.dispatch()
    children = [row["task_id"] for row in driver.call(running, task)]
    driver.claim(children[0])
    driver.finish(children[0])
    assert send(driver, task, "go", 1) == State.WAITING
    assert pass_time(driver) == 0
    assert (driver.row(task)["open_waits"], driver.row(task)["due_at"]) == (1, None)
    assert driver.call(lifecycle.heal_waits) == (0, None)
    driver.call(lifecycle.cancel, children[1], reason="enough")
    assert driver.state(task) == "pending"
    assert driver.again(task) == 2
    assert outputs(driver, task)[2:] == [1, {"timed_out": True}, {"timed_out": True}]


def running(connection: Any, task: UUID) -> list[dict[str, Any]]:
    """The sub-tasks of a task."""
    rows = connection.exec_driver_sql("SELECT id AS task_id FROM tasks WHERE parent_id = %s ORDER BY id", (task,))
    return [dict(row) for row in rows.mappings()]


def test_timers_end_one_after_the_other(driver: LifecycleDriver) -> None:
    task = driver.run()
    suspend(driver, task, TIMER, {**TIMER, "seconds": 7200.0})
    assert pass_time(driver) == 0
    assert driver.row(task)["open_waits"] == 1
    assert driver.row(task)["due_at"] is not None
    assert pass_time(driver) == 1


def test_a_cancelled_task_is_not_suspended(driver: LifecycleDriver) -> None:
    task = driver.run()
    driver.call(lifecycle.cancel, task, reason="enough")
    assert suspend(driver, task, signal("go"), children=1) == State.CANCELLED
    assert driver.sql("SELECT count(*) FROM tasks") == 1


def test_a_wait_that_lost_count_is_healed(driver: LifecycleDriver) -> None:
    task = driver.run()
    suspend(driver, task, signal("go"))
    driver.sql("UPDATE steps SET status = 'finished'")
    assert driver.call(lifecycle.heal_waits) == (0, None), (
        "not before ten seconds: another transaction may be about to count down"
    )
    driver.sql("UPDATE task_status SET updated_at = now() - interval '1 min'")
    assert driver.call(lifecycle.heal_waits) == (1, None)
    assert driver.state(task) == "pending"


def test_healer_skips_tasks_with_open_waits(driver: LifecycleDriver) -> None:
    task = driver.run()
    suspend(driver, task, signal("go"), children=1)
    driver.sql("UPDATE task_status SET updated_at = now() - interval '1 h'")
    assert driver.call(lifecycle.heal_waits) == (0, None)
    assert driver.state(task) == "waiting"
