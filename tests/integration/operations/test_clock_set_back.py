"""The clock of the database's host is put back by an hour: nothing stalls for that hour.

Here times are written that lie in the future, as they do after such a jump. The fault suite moves the clock itself.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from orchestrator.maintenance.clock import Clock
from orchestrator.maintenance.lost_workers import LostWorkers
from orchestrator.monitors import Monitors
from shared.broker import make_app
from shared.settings import Settings
from shared.tasks import lifecycle
from tests.integration.conftest import Tasks, orchestrating
from tests.support.lifecycle_driver import LifecycleDriver
from tests.support.processes import wait_until

AHEAD = timedelta(hours=1)


def heal(driver: LifecycleDriver) -> int:
    return driver.call(lifecycle.heal_clock)


def age(driver: LifecycleDriver, column: str, table: str) -> float:
    """The seconds since a time; below 0 it lies in the future."""
    return float(driver.sql(f"SELECT extract(epoch FROM clock_timestamp() - {column}) FROM {table}"))


def test_normal_clock_changes_nothing(driver: LifecycleDriver) -> None:
    driver.sql("UPDATE workers SET idle_since = NULL")
    driver.run()
    driver.submit()
    driver.dispatch()
    assert heal(driver) == 0
    assert driver.sql("SELECT idle_since FROM workers") is None


def waits_for_a_lock(driver: LifecycleDriver) -> bool:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%%heal_clock%%'"
    with driver.engine.connect() as connection:
        return bool(connection.exec_driver_sql(waiting).scalar_one())


def test_time_written_while_the_loop_waits_for_a_lock_stays(driver: LifecycleDriver) -> None:
    with ThreadPoolExecutor(1) as threads, driver.engine.connect() as other:
        other.execute(text("LOCK TABLE workers IN SHARE ROW EXCLUSIVE MODE"))
        healed = threads.submit(heal, driver)
        wait_until(lambda: waits_for_a_lock(driver), "the loop waits for the table")
        other.execute(text("UPDATE workers SET last_seen = clock_timestamp() + interval '1 s'"))
        other.commit()
        assert healed.result() == 0


def test_worker_with_future_heartbeat_is_lost_after_a_lease(
    driver: LifecycleDriver, tasks: Tasks, short_leases: Settings
) -> None:
    task = driver.run()
    driver.sql("UPDATE workers SET last_seen = last_seen + :ahead, active = ARRAY[:task]", ahead=AHEAD, task=str(task))
    with orchestrating(short_leases):
        assert tasks.wait_for(task, "pending")["losses"] == 1
    assert driver.sql("SELECT status FROM workers") == "lost"


def test_task_is_not_orphaned_by_an_older_heartbeat(driver: LifecycleDriver, short_leases: Settings) -> None:
    task = driver.run()
    driver.sql("UPDATE workers SET last_seen = last_seen + :ahead, active = '{}'", ahead=AHEAD)
    loop = LostWorkers(short_leases, driver.engine, Monitors(make_app(short_leases)))
    assert loop._give_back_orphans() == 0
    assert driver.state(task) == "running"


def test_running_task_counts_as_begun_now(driver: LifecycleDriver) -> None:
    driver.run()
    driver.sql("UPDATE task_status SET updated_at = updated_at + :ahead", ahead=AHEAD)
    assert heal(driver) == 1
    assert age(driver, "updated_at", "task_status") > 0


def test_message_from_the_future_is_republished(driver: LifecycleDriver) -> None:
    task = driver.submit()
    driver.dispatch()
    driver.sql(
        "UPDATE task_status SET published_at = published_at + :ahead, queued_at = queued_at + :ahead", ahead=AHEAD
    )
    driver.sql("UPDATE workers SET idle_since = now() + :ahead", ahead=AHEAD)
    assert heal(driver) == 2
    patience = {"lease": 3600.0, "patience": 0.0, "empty_queues": ["work"]}
    assert [message.task_id for message in driver.call(lifecycle.republish, **patience)] == [task]
    assert age(driver, "queued_at", "task_status") > 0


@pytest.mark.parametrize("reason", ["backoff", "timer"])
def test_wait_lasts_no_longer_than_it_was_to(driver: LifecycleDriver, reason: str) -> None:
    task = driver.run()
    if reason == "backoff":
        driver.release(task, delay=0.5)
    else:
        wait = {"step": 1, "name": "timer", "request_hash": "1", "seconds": 0.5, "signal": False}
        driver.call(lifecycle.suspend, task, 1, {}, [], [wait])
    driver.sql("UPDATE task_status SET due_at = due_at + :ahead, updated_at = updated_at + :ahead", ahead=AHEAD)
    driver.sql("UPDATE steps SET due_at = due_at + :ahead", ahead=AHEAD)
    driver.call(lifecycle.heal_waits)
    assert driver.row(task)["wait_reason"] == reason
    wait_until(lambda: driver.call(lifecycle.wake_due) == 1, "the wait is over")
    assert driver.state(task) == "pending"


def test_long_wait_that_began_before_is_left_alone(driver: LifecycleDriver) -> None:
    task = driver.run()
    driver.release(task, delay=3600.0)
    due_at = driver.row(task)["due_at"]
    driver.call(lifecycle.heal_waits)
    assert driver.row(task)["due_at"] == due_at


def test_hold_that_its_limit_does_not_explain_is_lifted(driver: LifecycleDriver) -> None:
    limit = "INSERT INTO limits (scope, name, rate, period_seconds) VALUES (:scope, :name, :rate, :period)"
    driver.sql(limit, scope="agent", name="*", rate=100, period=60)
    driver.sql(limit, scope="key", name="k", rate=1, period=7200)
    hold = "INSERT INTO rate_holds (scope, name, until_at) VALUES (:scope, :name, now() + :ahead)"
    for scope, name in (("agent", "A"), ("key", "k"), ("capability", "work")):
        driver.sql(hold, scope=scope, name=name, ahead=AHEAD)
    assert heal(driver) == 2
    assert driver.sql("SELECT array_agg(scope) FROM rate_holds") == ["key"]


def schedule(driver: LifecycleDriver, name: str, **when: Any) -> UUID:
    """Stores a schedule whose next run lies an hour further away than it should."""
    columns = ", ".join(when)
    id: UUID = driver.sql(
        f"INSERT INTO schedules (name, request, next_at, {columns}) "
        f"VALUES (:name, '{{}}', now() + :ahead, {', '.join(f':{column}' for column in when)}) RETURNING id",
        name=name,
        ahead=AHEAD + timedelta(seconds=60),
        **when,
    )
    return id


def test_interval_continues_and_time_of_day_is_awaited(driver: LifecycleDriver) -> None:
    every, daily = schedule(driver, "every", interval_seconds=60), schedule(driver, "daily", cron="0 7 * * *")
    assert heal(driver) == 1
    left = "SELECT extract(epoch FROM next_at - now()) FROM schedules WHERE id = :id"
    assert driver.sql(left, id=every) <= 60
    assert driver.sql(left, id=daily) > 3600


def test_webhook_that_was_not_tried_yet_is_due(driver: LifecycleDriver) -> None:
    driver.sql("INSERT INTO webhooks (name, url, secret) VALUES ('hook', 'https://example.com', 'x')")
    driver.finish(driver.run())
    driver.finish(driver.run())
    driver.sql("UPDATE webhook_deliveries SET attempts = 1 WHERE id = (SELECT id FROM webhook_deliveries LIMIT 1)")
    driver.sql("UPDATE webhook_deliveries SET next_at = next_at + :ahead", ahead=AHEAD)
    assert heal(driver) == 1
    assert driver.sql("SELECT array_agg(attempts) FROM webhook_deliveries WHERE next_at < clock_timestamp()") == [0]


def test_loop_looks_once_in_a_lease(driver: LifecycleDriver, short_leases: Settings) -> None:
    driver.sql("UPDATE workers SET last_seen = now() + :ahead", ahead=AHEAD)
    assert Clock(short_leases, driver.engine).run_once() == short_leases.lease_seconds
    assert age(driver, "last_seen", "workers") > 0
