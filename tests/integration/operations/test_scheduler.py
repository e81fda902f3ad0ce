"""One leader runs each schedule once, at its time; missed and refused runs follow the schedule's settings."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from orchestrator.loops.leadership import Leadership
from orchestrator.schedules import store as schedules
from orchestrator.schedules.scheduler import Scheduler, run_due
from orchestrator.schedules.store import ScheduleDefinition
from orchestrator.schedules.timetable import MAX_RUNS
from shared.database.connections import make_engine, transaction
from shared.settings import Settings
from shared.tasks.messages import checked_input
from tests.integration.conftest import Tasks
from tests.support.processes import wait_until

HOUR = timedelta(hours=1)
BACK = text("UPDATE schedules SET next_at = date_trunc('hour', now()) - :ago WHERE name = :name RETURNING id")
RUNS = text("SELECT key, task_id FROM idempotency_keys WHERE key LIKE 'schedule:%' ORDER BY key")
# The lead is an advisory lock with a key of two numbers.
END_LEADER = text(
    "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2"
)
LEADERS = text("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2")

Put = Callable[..., UUID]


@pytest.fixture
def put(database: Engine, act: Any) -> Put:
    """Stores a schedule of the agent `Act` whose next run was due so long ago; returns its id."""
    act()

    def store(name: str = "hourly", *, ago: timedelta = timedelta(0), **fields: Any) -> UUID:
        given = {"cron": "0 * * * *", "request": {"agent": "Act", "input": {"n": 1}}, **fields}
        with transaction() as connection:
            schedules.put(connection, "default", ScheduleDefinition.parse({"name": name, **given}))
            id: UUID = connection.scalar(BACK, {"name": name, "ago": ago})
            return id

    return store


@pytest.fixture
def scheduler(short_leases: Settings, database: Engine) -> Iterator[Scheduler]:
    """A scheduler that is not started: the test runs its rounds."""
    made = Scheduler(short_leases, database)
    yield made
    made.close()


def stored(name: str = "hourly") -> dict[str, Any]:
    with transaction() as connection:
        return schedules.get(connection, "default", name)


def runs(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return [key for key, _ in connection.execute(RUNS)]


def test_a_run_is_a_task_like_any_other(put: Put, scheduler: Scheduler, tasks: Tasks) -> None:
    id = put(request={"agent": "Act", "input": {"n": 1}, "labels": {"team": "x"}, "priority": 7, "key": "tenant"})
    with transaction() as connection:
        connection.execute(text("UPDATE schedules SET next_at = date_trunc('second', now())"))
    due_at = stored()["next_at"]
    scheduler.run_once()
    found = stored()
    task = tasks.get(found["last_task_id"])
    assert task["input"] == {"n": 1}
    assert task["labels"] == {"team": "x", "schedule": "hourly"}
    assert (task["priority"], task["key"], task["submitted_by"]) == (7, "tenant", "schedule:hourly")
    assert (found["last_at"], found["last_error"]) == (due_at, None)
    assert found["next_at"] > datetime.now(UTC)
    assert runs(tasks.engine) == [f"schedule:{id}:{due_at.isoformat()}"]


def test_check_may_outlast_the_idle_transaction_limit(
    put: Put, tasks: Tasks, short_leases: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_slowly(*arguments: Any, **named: Any) -> None:
        time.sleep(1)
        checked_input(*arguments, **named)

    id = put()
    monkeypatch.setattr("shared.tasks.submission.checked_input", check_slowly)
    engine = make_engine(short_leases.model_copy(update={"lease_seconds": 0.5}))
    with engine.begin() as connection:
        assert len(run_due(connection, id)) == 1
    engine.dispose()


@pytest.mark.parametrize(("missed", "expected"), [("skip", 0), ("once", 1), ("all", 6)])
def test_missed_runs_by_policy(put: Put, scheduler: Scheduler, tasks: Tasks, missed: str, expected: int) -> None:
    put(missed=missed, ago=5 * HOUR)
    # Within the grace of a full hour the newest run is not missed, only late.
    on_the_hour = datetime.now(UTC).minute < 2
    scheduler.run_once()
    assert sum(tasks.count().values()) in ({expected, 1} if missed == "skip" and on_the_hour else {expected})
    assert stored()["next_at"] > datetime.now(UTC)
    scheduler.run_once()
    assert len(runs(tasks.engine)) == sum(tasks.count().values())


def test_all_missed_runs_are_made_up_over_several_looks(put: Put, scheduler: Scheduler, tasks: Tasks) -> None:
    put(missed="all", ago=249 * HOUR)
    put("other", missed="once", ago=HOUR)
    assert scheduler.run_once() == 0.0
    assert len(runs(tasks.engine)) == MAX_RUNS + 1  # the other one need not wait
    while scheduler.run_once() == 0.0:
        pass
    assert len(runs(tasks.engine)) == 251


@pytest.mark.parametrize("how", ["disabled", "schema", "gone"])
def test_refusal_is_recorded_and_the_schedule_continues(
    put: Put, scheduler: Scheduler, tasks: Tasks, act: Any, how: str
) -> None:
    put()
    with transaction() as connection:
        if how == "disabled":
            connection.execute(text("UPDATE agents SET status = 'disabled'"))
        elif how == "gone":
            connection.execute(text("UPDATE agents SET name = 'Gone'"))
    if how == "schema":
        act(input_schema={"type": "object", "required": ["m"]})
    scheduler.run_once()
    found = stored()
    said = {"disabled": "is disabled", "schema": "does not match its schema", "gone": "no agent named"}[how]
    assert said in found["last_error"]
    assert found["next_at"] > datetime.now(UTC)
    assert found["last_at"] is not None
    assert tasks.count() == {}
    with transaction() as connection:
        connection.execute(text("UPDATE agents SET status = 'active', name = 'Act'"))
    if how == "schema":
        act()
    put_back = text("UPDATE schedules SET next_at = next_at - interval '1 hour'")
    with transaction() as connection:
        connection.execute(put_back)
    scheduler.run_once()
    assert stored()["last_error"] is None
    assert sum(tasks.count().values()) == 1


def test_unreadable_schedule_does_not_stop_the_others(put: Put, scheduler: Scheduler, tasks: Tasks) -> None:
    put("broken", ago=2 * HOUR)
    put("sound")
    with transaction() as connection:
        connection.execute(text("UPDATE schedules SET timezone = 'Moon/Base' WHERE name = 'broken'"))
    scheduler.run_once()
    assert "no time zone 'Moon/Base'" in stored("broken")["last_error"]
    assert stored("broken")["next_at"] > datetime.now(UTC) + timedelta(minutes=4)
    assert stored("sound")["last_task_id"] is not None
    assert sum(tasks.count().values()) == 1


def test_disabled_schedules_do_not_run_or_catch_up(put: Put, scheduler: Scheduler, tasks: Tasks) -> None:
    put(ago=5 * HOUR, missed="all")
    with transaction() as connection:
        schedules.change(connection, "default", "hourly", {"enabled": False})
    scheduler.run_once()
    with transaction() as connection:
        schedules.change(connection, "default", "hourly", {"enabled": True})
    scheduler.run_once()
    assert tasks.count() == {}
    assert stored()["next_at"] > datetime.now(UTC)


def test_two_transactions_at_once_run_it_once(put: Put, database: Engine, tasks: Tasks) -> None:
    id = put()
    with database.begin() as first, database.begin() as second:
        assert len(run_due(first, id)) == 1
        assert run_due(second, id) == []
    with database.begin() as third:
        assert run_due(third, id) == []
    assert sum(tasks.count().values()) == 1


def test_crash_before_commit_loses_no_run(put: Put, database: Engine, tasks: Tasks) -> None:
    id = put()
    with database.begin() as connection:
        assert len(run_due(connection, id)) == 1
        connection.rollback()
    assert tasks.count() == {}
    with database.begin() as connection:
        run_due(connection, id)
    assert sum(tasks.count().values()) == 1


def test_another_leader_takes_over_after_connection_loss(short_leases: Settings, database: Engine) -> None:
    first, second = (Leadership(short_leases, "test") for _ in range(2))
    try:
        assert (first.held(), second.held()) == (True, False)
        with database.begin() as connection:
            connection.execute(END_LEADER)
        assert wait_until(second.held, "the other one leads")
        with pytest.raises(Exception, match=r"terminat|closed"):
            first.held()
        assert not first.held()
        second.release()
        # The server lets go of the lock a moment after the connection was closed.
        assert wait_until(first.held, "the first one leads again")
    finally:
        first.release()
        second.release()


def test_hanging_leader_loses_the_lead(short_leases: Settings, database: Engine) -> None:
    first, second = (Leadership(short_leases, "test") for _ in range(2))
    try:
        assert first.held()
        assert wait_until(second.held, "the other one leads", timeout=2 * short_leases.lease_seconds + 2)
    finally:
        first.release()
        second.release()


def test_three_that_compete_while_leaders_die_never_run_twice(
    put: Put, short_leases: Settings, database: Engine, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Leadership spares work; without any, the rows alone must keep runs from happening twice.
    loops = [Scheduler(short_leases, database) for _ in range(3)]
    for loop in loops[:2]:
        monkeypatch.setattr(loop.leadership, "held", lambda: True)
    begun = datetime.now(UTC)
    for number in range(5):
        put(f"every-{number}", cron=None, interval_seconds=1.0, missed="all", ago=timedelta(0))
    with transaction() as connection:
        connection.execute(text("UPDATE schedules SET next_at = :begun"), {"begun": begun})
    for loop in loops:
        loop.start()
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(0.5):
            with database.begin() as connection:
                connection.execute(END_LEADER)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        wait_until(lambda: sum(tasks.count().values()) >= 40, "eight rounds of five schedules")
    finally:
        stop.set()
        killer.join()
        for loop in loops:
            loop.stop()
    with database.connect() as connection:
        keys = list(connection.execute(RUNS))
        number = connection.scalar(text("SELECT count(*) FROM tasks"))
        until = connection.execute(text("SELECT id, last_at FROM schedules")).all()
    assert number == len(keys)
    expected = {
        f"schedule:{id}:{(begun + timedelta(seconds=second)).isoformat()}"
        for id, last_at in until
        for second in range(int((last_at - begun).total_seconds()) + 1)
    }
    assert {key for key, _ in keys} == expected


def test_the_lead_changes_in_the_middle(put: Put, short_leases: Settings, database: Engine, tasks: Tasks) -> None:
    put("tick", cron=None, interval_seconds=1.0, missed="all")
    with transaction() as connection:
        connection.execute(text("UPDATE schedules SET next_at = now()"))
    loops = [Scheduler(short_leases, database) for _ in range(2)]
    for loop in loops:
        loop.start()
    try:
        wait_until(lambda: sum(tasks.count().values()) >= 1, "the first run")
        with database.begin() as connection:
            assert connection.execute(END_LEADER).rowcount == 1
        before = sum(tasks.count().values())
        wait_until(lambda: sum(tasks.count().values()) >= before + 3, "the other one goes on", timeout=10)
        with database.connect() as connection:
            assert len(list(connection.scalars(LEADERS))) == 1
    finally:
        for loop in loops:
            loop.stop()
    assert len(runs(database)) == sum(tasks.count().values())
