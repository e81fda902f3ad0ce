"""Who goes first, who goes at all: fair shares, priority, pauses, limits, holds. Each test takes the steps by hand."""

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
from tests.support.lifecycle_driver import NOOP, ByHand, agent, at_once
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
def hand(database: Engine, define: Define) -> ByHand:
    define(NOOP, agent("A"), agent("B"), agent("C", "other"))
    return ByHand(database, "work", "other")


def fill(hand: ByHand, number: int, key: str, *, keys: int = 1, agent: str = "A") -> None:
    """Accepts so many tasks at once, for one key (named `key` + 0) or for several in turn."""
    with hand.engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))  # no triggers: it is faster
        connection.execute(FILL, {"number": number, "key": key, "keys": keys, "agent": agent})


def narrow(hand: ByHand, slots: int) -> None:
    """The worker has so many slots: the window is twice that."""
    hand.sql("UPDATE workers SET slots = :slots", slots=slots)


def dispatch(hand: ByHand, window: int = 1) -> list[UUID]:
    """One round, as far as the worker's window has room."""
    return [message.task_id for message in hand.call(lifecycle.dispatch, lease=600.0, window=window)]


def work_off(hand: ByHand, rounds: int) -> list[str]:
    """So many rounds in which everything that is dispatched is run; the keys in the order of their tasks' starts."""
    keys = []
    for _ in range(rounds):
        for task in dispatch(hand):
            keys.append(hand.row(task)["key"])
            hand.claim(task)
            hand.finish(task)
    return keys


def limit(hand: ByHand, scope: str, name: str, most: int) -> None:
    """Sets max_running."""
    hand.sql(
        "INSERT INTO limits (scope, name, max_running) VALUES (:scope, :name, :most) "
        "ON CONFLICT (namespace, scope, name) DO UPDATE SET max_running = EXCLUDED.max_running",
        scope=scope,
        name=name,
        most=most,
    )


def pause(hand: ByHand, scope: str, name: str) -> None:
    """Pauses, for lunch."""
    hand.sql("INSERT INTO pauses (scope, name, reason) VALUES (:scope, :name, 'lunch')", scope=scope, name=name)


def agents(hand: ByHand, tasks: list[UUID]) -> Counter[Any]:
    """How many tasks of each agent."""
    return Counter(hand.row(task)["agent"] for task in tasks)


def keys(hand: ByHand, tasks: list[UUID]) -> Counter[Any]:
    """How many tasks of each key."""
    return Counter(hand.row(task)["key"] for task in tasks)


# ---------------------------------------------------------------------------------------------------- fair shares


def test_a_tenant_with_many_tasks_does_not_delay_one_with_few(hand: ByHand) -> None:
    fill(hand, 10_000, "many")
    fill(hand, 10, "few")
    narrow(hand, 4)
    order = work_off(hand, rounds=4)
    assert order.count("few0") == 10
    assert order[:24].count("few0") == 10


def test_what_is_in_flight_counts_for_the_next_turn(hand: ByHand) -> None:
    fill(hand, 20, "many")
    narrow(hand, 4)
    first = dispatch(hand)
    assert keys(hand, first) == {"many0": 8}
    for task in first[:4]:
        hand.claim(task)
    fill(hand, 20, "late")
    assert keys(hand, dispatch(hand)) == {"late0": 4}


@pytest.mark.parametrize(("scope", "name"), [("capability", "work"), ("agent", "A"), ("agent", "*")])
def test_shares_are_fair_under_a_limit_too(hand: ByHand, scope: str, name: str) -> None:
    fill(hand, 1000, "many")
    fill(hand, 10, "few")
    limit(hand, scope, name, 2)
    order = work_off(hand, rounds=11)
    assert order.count("few0") >= 9


def test_a_task_without_a_key_is_in_a_line_of_its_own(hand: ByHand) -> None:
    fill(hand, 100, "many")
    task = hand.submit()
    narrow(hand, 1)
    assert task in dispatch(hand)


def test_each_key_gets_its_share_however_many_lines_there_are(hand: ByHand) -> None:
    fill(hand, 400, "key", keys=40)
    narrow(hand, 10)
    assert set(keys(hand, dispatch(hand)).values()) == {1}
    narrow(hand, 40)
    assert sum(keys(hand, dispatch(hand)).values()) == 60
    hand.sql("UPDATE task_status SET state = 'pending' WHERE state = 'queued'")
    assert set(keys(hand, dispatch(hand)).values()) == {2}


def test_a_window_that_many_tenants_cannot_fill_is_filled_by_one(hand: ByHand) -> None:
    fill(hand, 20, "few", keys=20)
    fill(hand, 500, "many")
    narrow(hand, 100)
    taken = Counter[Any]()
    for _ in range(3):
        taken += keys(hand, dispatch(hand))
    assert taken["many0"] == 180


# ------------------------------------------------------------------------------------------------------- priority


@pytest.mark.parametrize(("older", "first"), [(59, "urgent"), (61, "old")])
def test_a_point_of_priority_outweighs_a_minute_of_waiting(hand: ByHand, older: int, first: str) -> None:
    tasks = {"urgent": hand.submit(priority=1), "old": hand.submit(priority=0)}
    hand.dispatch()  # routes them
    hand.sql("UPDATE task_status SET state = 'pending'")
    hand.sql(
        "UPDATE task_status SET rank = minion_rank(now() - :older * interval '1 s', 0) WHERE priority = 0", older=older
    )
    hand.sql("UPDATE task_status SET rank = minion_rank(now(), 1) WHERE priority = 1")
    narrow(hand, 0)
    assert dispatch(hand, window=1) == [tasks[first]]


def test_a_scheduled_task_waits_from_when_it_is_due(hand: ByHand) -> None:
    due = hand.submit(run_at="2100-01-01T00:00:00Z", priority=0)
    other = hand.submit()
    hand.sql("UPDATE task_status SET due_at = now() - interval '1 s' WHERE state = 'scheduled'")
    assert hand.call(lifecycle.wake_due) == 1
    assert [message.task_id for message in hand.dispatch()] == [due, other]


def test_a_task_that_is_woken_keeps_its_place(hand: ByHand) -> None:
    first = hand.run()
    hand.release(first, delay=60.0)
    second = hand.submit()
    hand.sql("UPDATE task_status SET due_at = now() WHERE state = 'waiting'")
    hand.call(lifecycle.wake_due)
    assert [message.task_id for message in hand.dispatch()] == [first, second]


# --------------------------------------------------------------------------------------------------------- pauses

PAUSES = [("capability", "work", {"C"}), ("agent", "A", {"B", "C"}), ("key", "t1", {"B", "C"})]


@pytest.mark.parametrize(("scope", "name", "going"), PAUSES)
def test_what_is_paused_stays_in_line(hand: ByHand, scope: str, name: str, going: set[str]) -> None:
    tasks = {a: hand.submit(a, key=k) for a, k in [("A", "t1"), ("B", "t2"), ("C", "t2")]}
    pause(hand, scope, name)
    assert {message.task_id for message in hand.dispatch()} == {tasks[a] for a in going}
    assert {hand.state(tasks[a]) for a in tasks.keys() - going} == {"pending"}
    hand.sql("DELETE FROM pauses")
    assert {message.task_id for message in hand.dispatch()} == {tasks[a] for a in tasks.keys() - going}


@pytest.mark.parametrize(("scope", "name"), [(scope, name) for scope, name, _ in PAUSES])
def test_a_pause_sends_queued_tasks_back_at_their_claim(hand: ByHand, scope: str, name: str) -> None:
    task = hand.submit(key="t1")
    hand.dispatch()
    pause(hand, scope, name)
    claimed = hand.claim(task, 0)
    assert claimed is not None
    assert {**claimed["refused"], "since": None} == {
        "kind": "paused",
        "scope": scope,
        "name": name,
        "reason": "lunch",
        "since": None,
    }
    assert (hand.state(task), hand.row(task)["claim"]) == ("pending", 0)
    assert hand.claim(task, 0) is None
    hand.sql("DELETE FROM pauses")
    assert hand.again(task) == 1


def test_a_pause_of_another_namespace_is_none(hand: ByHand) -> None:
    hand.sql("INSERT INTO pauses (namespace, scope, name) VALUES ('other', 'agent', 'A')")
    hand.run()
    assert hand.sql(RUNNING) == 1


def test_what_runs_goes_on_during_a_pause(hand: ByHand) -> None:
    task = hand.run()
    pause(hand, "agent", "A")
    assert hand.finish(task) == State.SUCCEEDED


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
def test_no_more_are_sent_than_may_run(hand: ByHand, scope: str, name: str, expected: dict[str, int]) -> None:
    for number in range(6):
        for who in ("A", "B", "C"):
            hand.submit(who, key=f"t{number}{who}")
    limit(hand, scope, name, 2)
    taken = agents(hand, [message.task_id for message in hand.dispatch()])
    if scope == "capability":
        assert (taken["A"] + taken["B"], taken["C"]) == (expected["A"] + expected["B"], expected["C"])
    else:
        assert taken == expected
    assert hand.dispatch() == []


def test_each_key_has_the_limit_of_the_star_but_for_those_with_their_own(hand: ByHand) -> None:
    for who, key in [("A", "t1"), ("B", "t1"), ("C", "t1"), ("A", "t2"), ("A", "t2"), ("A", "big"), ("A", "big")]:
        hand.submit(who, key=key)
    for _ in range(3):
        hand.submit("A")
    limit(hand, "key", "*", 1)
    limit(hand, "key", "big", 2)
    taken = [message.task_id for message in hand.dispatch()]
    # Tasks without a key are nobody's.
    assert keys(hand, taken) == {"t1": 1, "t2": 1, "big": 2, None: 3}


def test_every_limit_holds_where_several_do(hand: ByHand) -> None:
    fill(hand, 10, "key", keys=5)
    limit(hand, "capability", "work", 3)
    limit(hand, "agent", "A", 4)
    limit(hand, "key", "*", 1)
    assert set(keys(hand, dispatch(hand, window=1000)).values()) == {1}
    assert hand.sql(IN_FLIGHT) == 3


def test_a_limit_of_nothing_stops_everything(hand: ByHand) -> None:
    task = hand.submit()
    limit(hand, "agent", "A", 0)
    assert hand.dispatch() == []
    hand.sql("DELETE FROM limits")
    assert hand.again(task) == 1


def test_room_comes_with_what_ends_or_waits(hand: ByHand) -> None:
    limit(hand, "agent", "A", 1)
    first, second, third = hand.run(), hand.submit(), hand.submit()
    assert hand.dispatch() == []
    hand.release(first, delay=60.0)
    assert [message.task_id for message in hand.dispatch()] == [second]
    hand.claim(second)
    hand.finish(second)
    assert [message.task_id for message in hand.dispatch()] == [third]


def test_orchestrators_that_dispatch_at_once_keep_the_limits(hand: ByHand) -> None:
    fill(hand, 60, "key", keys=10)
    limit(hand, "capability", "work", 7)
    limit(hand, "key", "*", 2)
    for _ in range(8):
        rounds = at_once(*[lambda: dispatch(hand, window=1000)] * 4)
        taken = [task for tasks in rounds for task in tasks]
        assert hand.sql(IN_FLIGHT) == 7
        assert max(keys(hand, taken).values()) <= 2
        for task in taken:
            hand.claim(task)
            hand.finish(task)
    assert hand.sql("SELECT count(*) FROM task_status WHERE state = 'succeeded'") == 56


def test_claims_at_once_keep_a_limit_that_was_lowered_after_the_dispatch(hand: ByHand) -> None:
    fill(hand, 12, "key", keys=3)
    tasks = dispatch(hand, window=1000)
    assert len(tasks) == 12
    limit(hand, "capability", "work", 4)
    limit(hand, "key", "*", 2)
    claims = at_once(*[lambda task=task: hand.claim(task, 0) for task in tasks])
    refused = [claim["refused"] for claim in claims if claim and "refused" in claim]
    assert (len(refused), hand.sql(RUNNING)) == (8, 4)
    assert {obstacle["kind"] for obstacle in refused} == {"max_running"}
    assert {(o["scope"], o["limit"], o["running"]) for o in refused} <= {("capability", 4, 4), ("key", 2, 2)}
    assert max(keys(hand, [t for t in tasks if hand.state(t) == "running"]).values()) <= 2
    assert hand.sql("SELECT count(*) FROM task_status WHERE state = 'pending'") == 8


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
def test_a_limit_holds_whatever_the_database_s_isolation_level_is(hand: ByHand, settings: Settings) -> None:
    first, second = hand.submit(), hand.submit()
    hand.dispatch()
    limit(hand, "capability", "work", 1)
    blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%_claim%'"
    connected_now = make_engine(settings)
    with ThreadPoolExecutor(1) as threads:
        with connected_now.begin() as earlier:
            lifecycle.claim(earlier, first, 0, hand.worker)
            later = threads.submit(ByHand(connected_now).claim, second, 0, hand.worker)
            wait_until(lambda: hand.sql(blocked), "the second claim waits for the first")
        claimed = later.result()
    connected_now.dispose()
    assert claimed is not None
    assert (claimed["refused"]["kind"], hand.sql(RUNNING)) == ("max_running", 1)


# ---------------------------------------------------------------------------------------------------------- rates


def rate(hand: ByHand, scope: str, name: str, starts: int) -> None:
    """So many starts a minute."""
    hand.sql(
        "INSERT INTO limits (scope, name, rate, period_seconds) VALUES (:scope, :name, :starts, 60)",
        scope=scope,
        name=name,
        starts=starts,
    )


def test_a_claim_under_a_rate_is_for_the_limiter_to_grant(hand: ByHand) -> None:
    task = hand.submit(key="t1")
    rate(hand, "agent", "A", 30)
    rate(hand, "key", "*", 60)
    hand.dispatch()
    claimed = hand.claim(task, 0)
    assert claimed is not None
    assert claimed["refused"] == {
        "kind": "rate",
        "namespace": "default",
        "rates": [
            {"scope": "agent", "name": "A", "rate": 30, "period_seconds": 60},
            {"scope": "key", "name": "t1", "rate": 60, "period_seconds": 60},
        ],
    }
    assert hand.state(task) == "queued"
    granted = hand.call(lifecycle.claim, task, 0, hand.worker, granted=True)
    assert granted is not None
    assert granted["claim"] == 1


def test_no_more_are_sent_than_a_rate_lets_start_at_once(hand: ByHand) -> None:
    fill(hand, 20, "key")
    rate(hand, "agent", "A", 30)
    assert len(dispatch(hand, window=1000)) == 3
    assert dispatch(hand, window=1000) == []


@pytest.mark.parametrize(("scope", "name"), [("agent", "A"), ("capability", "work"), ("key", "t1")])
def test_what_is_held_leaves_the_line_when_the_hold_is_over(hand: ByHand, scope: str, name: str) -> None:
    held, behind = hand.submit("A", key="t1"), hand.submit("A", key="t1")
    elsewhere = hand.submit("C", key="t2")
    hand.dispatch()
    hand.call(lifecycle.hold, held, 0, scope=scope, name=name, delay=60.0)
    hand.call(lifecycle.hold, behind, 0, scope=scope, name=name, delay=1.0)
    assert (hand.state(held), hand.state(behind), hand.state(elsewhere)) == ("pending", "pending", "queued")
    assert hand.dispatch() == []
    # The shorter hold came later and did not cut the longer one short.
    assert hand.sql("SELECT until_at > now() + interval '50 s' FROM rate_holds") is True
    hand.sql("UPDATE rate_holds SET until_at = now()")
    assert {message.task_id for message in hand.dispatch()} == {held, behind}


def test_a_hold_under_an_old_claim_holds_nothing(hand: ByHand) -> None:
    task = hand.run()
    hand.call(lifecycle.hold, task, 0, scope="agent", name="A", delay=60.0)
    hand.release(task, charged=False)
    hand.dispatch()
    hand.call(lifecycle.hold, task, 0, scope="agent", name="A", delay=60.0)
    assert (hand.state(task), hand.sql("SELECT count(*) FROM rate_holds")) == ("queued", 0)


# ------------------------------------------------------------------------------------------------- a long line

# Index entries and rows that this connection has read of the table of task states.
ROWS_READ = text(
    "SELECT sum(pg_stat_get_xact_tuples_returned(o)) FROM (SELECT 'task_status'::regclass::oid UNION ALL "
    "SELECT indexrelid FROM pg_index WHERE indrelid = 'task_status'::regclass) AS t (o)"
)


LOOKED_AT = 8  # for each line, and for each task that is taken: far less than there are


def rows_read(hand: ByHand, window: int) -> tuple[int, int]:
    """How many tasks one round would take, and how many rows it looks at."""
    tidy(hand)  # what was rolled back before is not to be counted
    with hand.engine.connect() as connection:
        before = connection.scalar(ROWS_READ)
        taken = len(lifecycle.dispatch(connection, lease=600.0, window=window))
        return taken, int(connection.scalar(ROWS_READ) - before)


@pytest.fixture
def long_line(hand: ByHand) -> ByHand:
    """200,000 pending tasks of 500 keys."""
    fill(hand, 200_000, "key", keys=500)
    return hand


def tidy(hand: ByHand) -> None:
    """As autovacuum would leave it."""
    with hand.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE tasks, task_status"))


def test_a_round_looks_at_few_rows_however_long_the_line_is(long_line: ByHand) -> None:
    narrow(long_line, 1)
    for _ in range(2):
        for window in (64, 1000):
            taken, read = rows_read(long_line, window)
            assert taken == window
            assert read < LOOKED_AT * (500 + taken)
        limit(long_line, "capability", "work", 5000)
        limit(long_line, "key", "*", 100)
