"""Order and admission of tasks: fair shares, priority, pauses, limits, rate holds. Tests use the lifecycle driver."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from shared.database.connections import make_engine
from shared.settings import Settings
from shared.tasks import lifecycle
from shared.tasks.states import State
from tests.conftest import Define
from tests.support.definitions import NOOP, agent_definition
from tests.support.lifecycle_driver import LifecycleDriver, concurrently
from tests.support.processes import wait_until

FILL = text(
    """
    WITH made AS (
        INSERT INTO tasks (id, agent_name, agent_version_id, input, root_id, origin_id, key)
        SELECT i.id, v.name, v.id, '{}', i.id, i.id, :key || (i.n % :keys)
            FROM (SELECT n, minion_uuidv7() AS id FROM generate_series(1, :number) n) i
            JOIN agent_versions v ON v.name = :agent
        RETURNING id, agent_name, key
    )
    INSERT INTO task_status (task_id, state, capability, agent_name, key, rank)
        SELECT id, 'pending', 'work', agent_name, key, minion_rank(clock_timestamp(), 0) FROM made
    """
)
RUNNING = "SELECT count(*) FROM task_status WHERE state = 'running'"
IN_FLIGHT = "SELECT count(*) FROM task_status WHERE state IN ('queued', 'running')"


@pytest.fixture
def driver(database: Engine, define: Define) -> LifecycleDriver:
    define(NOOP, agent_definition("A"), agent_definition("B"), agent_definition("C", "other"))
    return LifecycleDriver(database, "work", "other")


def fill(driver: LifecycleDriver, number: int, key: str, *, keys: int = 1, agent: str = "A") -> None:
    """Accept `number` tasks at once, for one key (named `key` + 0) or for several in turn."""
    with driver.engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))  # no triggers: it is faster
        connection.execute(FILL, {"number": number, "key": key, "keys": keys, "agent": agent})


def narrow(driver: LifecycleDriver, slots: int) -> None:
    """Set the worker's slots: the window is twice that."""
    driver.sql("UPDATE workers SET slots = :slots", slots=slots)


def dispatch(driver: LifecycleDriver, window: int = 1) -> list[UUID]:
    """One round, as far as the worker's window has room."""
    return [message.task_id for message in driver.call(lifecycle.dispatch, lease=600.0, window=window)]


def work_off(driver: LifecycleDriver, rounds: int) -> list[str]:
    """Run rounds in which all dispatched tasks run; return the keys in the order of their tasks' starts."""
    keys = []
    for _ in range(rounds):
        for task in dispatch(driver):
            keys.append(driver.row(task)["key"])
            driver.claim(task)
            driver.finish(task)
    return keys


def limit(driver: LifecycleDriver, scope: str, name: str, most: int) -> None:
    """Sets max_running."""
    driver.sql(
        "INSERT INTO limits (scope, name, max_running) VALUES (:scope, :name, :most) "
        "ON CONFLICT (namespace, scope, name) DO UPDATE SET max_running = EXCLUDED.max_running",
        scope=scope,
        name=name,
        most=most,
    )


def pause(driver: LifecycleDriver, scope: str, name: str) -> None:
    """Pauses, for lunch."""
    driver.sql("INSERT INTO pauses (scope, name, reason) VALUES (:scope, :name, 'lunch')", scope=scope, name=name)


def agents(driver: LifecycleDriver, tasks: list[UUID]) -> Counter[Any]:
    """Return the number of tasks of each agent."""
    return Counter(driver.row(task)["agent"] for task in tasks)


def keys(driver: LifecycleDriver, tasks: list[UUID]) -> Counter[Any]:
    """Return the number of tasks of each key."""
    return Counter(driver.row(task)["key"] for task in tasks)


# ---------------------------------------------------------------------------------------------------- fair shares


def test_a_tenant_with_many_tasks_does_not_delay_one_with_few(driver: LifecycleDriver) -> None:
    fill(driver, 10_000, "many")
    fill(driver, 10, "few")
    narrow(driver, 4)
    order = work_off(driver, rounds=4)
    assert order.count("few0") == 10
    assert order[:24].count("few0") == 10


def test_tasks_in_flight_count_for_the_next_share(driver: LifecycleDriver) -> None:
    fill(driver, 20, "many")
    narrow(driver, 4)
    first = dispatch(driver)
    assert keys(driver, first) == {"many0": 8}
    for task in first[:4]:
        driver.claim(task)
    fill(driver, 20, "late")
    assert keys(driver, dispatch(driver)) == {"late0": 4}


@pytest.mark.parametrize(("scope", "name"), [("capability", "work"), ("agent", "A"), ("agent", "*")])
def test_shares_are_fair_under_a_limit_too(driver: LifecycleDriver, scope: str, name: str) -> None:
    fill(driver, 1000, "many")
    fill(driver, 10, "few")
    limit(driver, scope, name, 2)
    order = work_off(driver, rounds=11)
    assert order.count("few0") >= 9


def test_task_without_key_has_its_own_queue(driver: LifecycleDriver) -> None:
    fill(driver, 100, "many")
    task = driver.submit()
    narrow(driver, 1)
    assert task in dispatch(driver)


def test_each_key_gets_its_share_however_many_lines_there_are(driver: LifecycleDriver) -> None:
    fill(driver, 400, "key", keys=40)
    narrow(driver, 10)
    assert set(keys(driver, dispatch(driver)).values()) == {1}
    narrow(driver, 40)
    assert sum(keys(driver, dispatch(driver)).values()) == 60
    driver.sql("UPDATE task_status SET state = 'pending' WHERE state = 'queued'")
    assert set(keys(driver, dispatch(driver)).values()) == {2}


def test_one_tenant_fills_the_rest_of_the_window(driver: LifecycleDriver) -> None:
    fill(driver, 20, "few", keys=20)
    fill(driver, 500, "many")
    narrow(driver, 100)
    taken = Counter[Any]()
    for _ in range(3):
        taken += keys(driver, dispatch(driver))
    assert taken["many0"] == 180


# ------------------------------------------------------------------------------------------------------- priority


@pytest.mark.parametrize(("older", "first"), [(59, "urgent"), (61, "old")])
def test_a_point_of_priority_outweighs_a_minute_of_waiting(driver: LifecycleDriver, older: int, first: str) -> None:
    tasks = {"urgent": driver.submit(priority=1), "old": driver.submit(priority=0)}
    driver.dispatch()  # routes them
    driver.sql("UPDATE task_status SET state = 'pending'")
    driver.sql(
        "UPDATE task_status SET rank = minion_rank(now() - :older * interval '1 s', 0) WHERE priority = 0", older=older
    )
    driver.sql("UPDATE task_status SET rank = minion_rank(now(), 1) WHERE priority = 1")
    narrow(driver, 0)
    assert dispatch(driver, window=1) == [tasks[first]]


def test_a_scheduled_task_waits_from_when_it_is_due(driver: LifecycleDriver) -> None:
    due = driver.submit(run_at="2100-01-01T00:00:00Z", priority=0)
    other = driver.submit()
    driver.sql("UPDATE task_status SET due_at = now() - interval '1 s' WHERE state = 'scheduled'")
    assert driver.call(lifecycle.wake_due) == 1
    assert [message.task_id for message in driver.dispatch()] == [due, other]


def test_a_task_that_is_woken_keeps_its_place(driver: LifecycleDriver) -> None:
    first = driver.run()
    driver.release(first, delay=60.0)
    second = driver.submit()
    driver.sql("UPDATE task_status SET due_at = now() WHERE state = 'waiting'")
    driver.call(lifecycle.wake_due)
    assert [message.task_id for message in driver.dispatch()] == [first, second]


# --------------------------------------------------------------------------------------------------------- pauses

PAUSES = [("capability", "work", {"C"}), ("agent", "A", {"B", "C"}), ("key", "t1", {"B", "C"})]


@pytest.mark.parametrize(("scope", "name", "going"), PAUSES)
def test_paused_tasks_keep_their_position(driver: LifecycleDriver, scope: str, name: str, going: set[str]) -> None:
    tasks = {a: driver.submit(a, key=k) for a, k in [("A", "t1"), ("B", "t2"), ("C", "t2")]}
    pause(driver, scope, name)
    assert {message.task_id for message in driver.dispatch()} == {tasks[a] for a in going}
    assert {driver.state(tasks[a]) for a in tasks.keys() - going} == {"pending"}
    driver.sql("DELETE FROM pauses")
    assert {message.task_id for message in driver.dispatch()} == {tasks[a] for a in tasks.keys() - going}


@pytest.mark.parametrize(("scope", "name"), [(scope, name) for scope, name, _ in PAUSES])
def test_a_pause_sends_queued_tasks_back_at_their_claim(driver: LifecycleDriver, scope: str, name: str) -> None:
    task = driver.submit(key="t1")
    driver.dispatch()
    pause(driver, scope, name)
    claimed = driver.claim(task, 0)
    assert claimed is not None
    assert {**claimed["refused"], "since": None} == {
        "kind": "paused",
        "scope": scope,
        "name": name,
        "reason": "lunch",
        "since": None,
    }
    assert (driver.state(task), driver.row(task)["claim"]) == ("pending", 0)
    assert driver.claim(task, 0) is None
    driver.sql("DELETE FROM pauses")
    assert driver.again(task) == 1


def test_a_pause_of_another_namespace_is_none(driver: LifecycleDriver) -> None:
    driver.sql("INSERT INTO pauses (namespace, scope, name) VALUES ('other', 'agent', 'A')")
    driver.run()
    assert driver.sql(RUNNING) == 1


def test_running_tasks_continue_during_a_pause(driver: LifecycleDriver) -> None:
    task = driver.run()
    pause(driver, "agent", "A")
    assert driver.finish(task) == State.SUCCEEDED


# --------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("scope", "name", "expected"),
    [
        ("capability", "work", {"A": 1, "B": 1, "C": 6}),
        ("capability", "*", {"A": 1, "B": 1, "C": 2}),
        ("agent", "A", {"A": 2, "B": 6, "C": 6}),
        ("agent", "*", {"A": 2, "B": 2, "C": 2}),
    ],
)
def test_no_more_are_sent_than_may_run(
    driver: LifecycleDriver, scope: str, name: str, expected: dict[str, int]
) -> None:
    for number in range(6):
        for who in ("A", "B", "C"):
            driver.submit(who, key=f"t{number}{who}")
    limit(driver, scope, name, 2)
    taken = agents(driver, [message.task_id for message in driver.dispatch()])
    if scope == "capability":
        assert (taken["A"] + taken["B"], taken["C"]) == (expected["A"] + expected["B"], expected["C"])
    else:
        assert taken == expected
    assert driver.dispatch() == []


def test_star_limit_holds_for_keys_without_their_own(driver: LifecycleDriver) -> None:
    for who, key in [("A", "t1"), ("B", "t1"), ("C", "t1"), ("A", "t2"), ("A", "t2"), ("A", "big"), ("A", "big")]:
        driver.submit(who, key=key)
    for _ in range(3):
        driver.submit("A")
    limit(driver, "key", "*", 1)
    limit(driver, "key", "big", 2)
    taken = [message.task_id for message in driver.dispatch()]
    # Tasks without a key belong to no tenant.
    assert keys(driver, taken) == {"t1": 1, "t2": 1, "big": 2, None: 3}


def test_every_limit_holds_where_several_do(driver: LifecycleDriver) -> None:
    fill(driver, 10, "key", keys=5)
    limit(driver, "capability", "work", 3)
    limit(driver, "agent", "A", 4)
    limit(driver, "key", "*", 1)
    assert set(keys(driver, dispatch(driver, window=1000)).values()) == {1}
    assert driver.sql(IN_FLIGHT) == 3


def test_limit_of_zero_stops_everything(driver: LifecycleDriver) -> None:
    task = driver.submit()
    limit(driver, "agent", "A", 0)
    assert driver.dispatch() == []
    driver.sql("DELETE FROM limits")
    assert driver.again(task) == 1


def test_ended_and_waiting_tasks_make_room(driver: LifecycleDriver) -> None:
    limit(driver, "agent", "A", 1)
    first, second, third = driver.run(), driver.submit(), driver.submit()
    assert driver.dispatch() == []
    driver.release(first, delay=60.0)
    assert [message.task_id for message in driver.dispatch()] == [second]
    driver.claim(second)
    driver.finish(second)
    assert [message.task_id for message in driver.dispatch()] == [third]


def test_orchestrators_that_dispatch_at_once_keep_the_limits(driver: LifecycleDriver) -> None:
    fill(driver, 60, "key", keys=10)
    limit(driver, "capability", "work", 7)
    limit(driver, "key", "*", 2)
    for _ in range(8):
        rounds = concurrently(*[lambda: dispatch(driver, window=1000)] * 4)
        taken = [task for tasks in rounds for task in tasks]
        assert driver.sql(IN_FLIGHT) == 7
        assert max(keys(driver, taken).values()) <= 2
        for task in taken:
            driver.claim(task)
            driver.finish(task)
    assert driver.sql("SELECT count(*) FROM task_status WHERE state = 'succeeded'") == 56


def test_concurrent_claims_keep_a_lowered_limit(driver: LifecycleDriver) -> None:
    fill(driver, 12, "key", keys=3)
    tasks = dispatch(driver, window=1000)
    assert len(tasks) == 12
    limit(driver, "capability", "work", 4)
    limit(driver, "key", "*", 2)
    claims = concurrently(*[lambda task=task: driver.claim(task, 0) for task in tasks])
    refused = [claim["refused"] for claim in claims if claim and "refused" in claim]
    assert (len(refused), driver.sql(RUNNING)) == (8, 4)
    assert {obstacle["kind"] for obstacle in refused} == {"max_running"}
    assert {(o["scope"], o["limit"], o["running"]) for o in refused} <= {("capability", 4, 4), ("key", 2, 2)}
    assert max(keys(driver, [t for t in tasks if driver.state(t) == "running"]).values()) <= 2
    assert driver.sql("SELECT count(*) FROM task_status WHERE state = 'pending'") == 8


@pytest.fixture
def strict_database(database: Engine) -> Iterator[None]:
    """A database whose owner has set another isolation level for all who connect."""
    with database.begin() as connection:
        name = connection.scalar(text("SELECT current_database()"))
        connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'"))
    yield
    with database.begin() as connection:
        connection.execute(text(f"ALTER DATABASE {name} RESET default_transaction_isolation"))


@pytest.mark.usefixtures("strict_database")
def test_limit_holds_at_every_isolation_level(driver: LifecycleDriver, settings: Settings) -> None:
    first, second = driver.submit(), driver.submit()
    driver.dispatch()
    limit(driver, "capability", "work", 1)
    blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%_claim%'"
    connected_now = make_engine(settings)
    with ThreadPoolExecutor(1) as threads:
        with connected_now.begin() as earlier:
            lifecycle.claim(earlier, first, 0, driver.worker)
            later = threads.submit(LifecycleDriver(connected_now).claim, second, 0, driver.worker)
            wait_until(lambda: driver.sql(blocked), "the second claim waits for the first")
        claimed = later.result()
    connected_now.dispose()
    assert claimed is not None
    assert (claimed["refused"]["kind"], driver.sql(RUNNING)) == ("max_running", 1)


# ---------------------------------------------------------------------------------------------------------- rates


def rate(driver: LifecycleDriver, scope: str, name: str, starts: int) -> None:
    """Limit the starts a minute."""
    driver.sql(
        "INSERT INTO limits (scope, name, rate, period_seconds) VALUES (:scope, :name, :starts, 60)",
        scope=scope,
        name=name,
        starts=starts,
    )


def test_a_claim_under_a_rate_is_for_the_limiter_to_grant(driver: LifecycleDriver) -> None:
    task = driver.submit(key="t1")
    rate(driver, "agent", "A", 30)
    rate(driver, "key", "*", 60)
    driver.dispatch()
    claimed = driver.claim(task, 0)
    assert claimed is not None
    assert claimed["refused"] == {
        "kind": "rate",
        "namespace": "default",
        "rates": [
            {"scope": "agent", "name": "A", "rate": 30, "period_seconds": 60},
            {"scope": "key", "name": "t1", "rate": 60, "period_seconds": 60},
        ],
    }
    assert driver.state(task) == "queued"
    granted = driver.call(lifecycle.claim, task, 0, driver.worker, granted=True)
    assert granted is not None
    assert granted["claim"] == 1


def test_no_more_are_sent_than_a_rate_lets_start_at_once(driver: LifecycleDriver) -> None:
    fill(driver, 20, "key")
    rate(driver, "agent", "A", 30)
    assert len(dispatch(driver, window=1000)) == 3
    assert dispatch(driver, window=1000) == []


@pytest.mark.parametrize(("scope", "name"), [("agent", "A"), ("capability", "work"), ("key", "t1")])
def test_task_leaves_the_queue_when_its_rate_hold_ends(driver: LifecycleDriver, scope: str, name: str) -> None:
    held, behind = driver.submit("A", key="t1"), driver.submit("A", key="t1")
    elsewhere = driver.submit("C", key="t2")
    driver.dispatch()
    driver.call(lifecycle.hold, held, 0, scope=scope, name=name, delay=60.0)
    driver.call(lifecycle.hold, behind, 0, scope=scope, name=name, delay=1.0)
    assert (driver.state(held), driver.state(behind), driver.state(elsewhere)) == ("pending", "pending", "queued")
    assert driver.dispatch() == []
    # The shorter hold came later and did not cut the longer one short.
    assert driver.sql("SELECT until_at > now() + interval '50 s' FROM rate_holds") is True
    driver.sql("UPDATE rate_holds SET until_at = now()")
    assert {message.task_id for message in driver.dispatch()} == {held, behind}


def test_rate_hold_of_an_old_claim_is_ignored(driver: LifecycleDriver) -> None:
    task = driver.run()
    driver.call(lifecycle.hold, task, 0, scope="agent", name="A", delay=60.0)
    driver.release(task, charged=False)
    driver.dispatch()
    driver.call(lifecycle.hold, task, 0, scope="agent", name="A", delay=60.0)
    assert (driver.state(task), driver.sql("SELECT count(*) FROM rate_holds")) == ("queued", 0)


# ------------------------------------------------------------------------------------------------- a long line

# Index entries and rows that this connection has read of the table of task states.
ROWS_READ = text(
    "SELECT sum(pg_stat_get_xact_tuples_returned(o)) FROM (SELECT 'task_status'::regclass::oid UNION ALL "
    "SELECT indexrelid FROM pg_index WHERE indrelid = 'task_status'::regclass) AS t (o)"
)


LOOKED_AT = 8  # for each line, and for each task that is taken: far less than there are


def rows_read(driver: LifecycleDriver, window: int) -> tuple[int, int]:
    """Return how many tasks one round would take, and how many rows it reads."""
    tidy(driver)  # rolled back rows must not be counted
    with driver.engine.connect() as connection:
        before = connection.scalar(ROWS_READ)
        taken = len(lifecycle.dispatch(connection, lease=600.0, window=window))
        return taken, int(connection.scalar(ROWS_READ) - before)


@pytest.fixture
def long_line(driver: LifecycleDriver) -> LifecycleDriver:
    """200,000 pending tasks of 500 keys."""
    fill(driver, 200_000, "key", keys=500)
    return driver


def tidy(driver: LifecycleDriver) -> None:
    """As autovacuum would leave it."""
    with driver.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE tasks, task_status"))


def test_a_round_looks_at_few_rows_however_long_the_line_is(long_line: LifecycleDriver) -> None:
    narrow(long_line, 1)
    for _ in range(2):
        for window in (64, 1000):
            taken, read = rows_read(long_line, window)
            assert taken == window
            assert read < LOOKED_AT * (500 + taken)
        limit(long_line, "capability", "work", 5000)
        limit(long_line, "key", "*", 100)
