"""Hot statements use indexes on large tables: with a backlog, with a history, with many tenants, with many waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, TextClause, text

from benchmarks.filling import fill_pending, fill_succeeded
from orchestrator.alerts.conditions import APPROVAL_OLD
from orchestrator.dispatcher import BACKLOG, LOOK, NEXT_HOLD, Dispatcher
from orchestrator.maintenance.expirer import OVERDUE
from orchestrator.maintenance.lost_workers import ORPHANED
from orchestrator.preparer import STILL_UNPREPARED, UNPREPARED
from shared.broker import make_app
from shared.database.connections import autocommit
from shared.settings import Settings
from shared.tasks import batches, budgets, cached_results, lifecycle, queries, remote_calls, standing_budgets, stops
from shared.tasks.queries import TaskFilter
from shared.tasks.states import State
from tests.support.lifecycle_driver import LifecycleDriver
from tests.support.plans import Mode, every_node, plans_of, rows_read

PENDING, ENDED, WAITING, TENANTS = 10_000, 10_000, 5_000, 100
LARGE = ("tasks", "task_status", "steps", "executions", "task_events", "task_outcomes", "cached_results")

WAIT = text(
    """
    WITH chosen AS (SELECT task_id FROM task_status WHERE state = 'pending' ORDER BY task_id DESC LIMIT :waiting),
    opened AS (
        INSERT INTO steps (task_id, number, kind, name, status, effect, request_hash, claim)
            SELECT task_id, 1, 'subtask', 'A', 'started', 'pure', '', 1 FROM chosen
    )
    UPDATE task_status s SET state = 'waiting', wait_reason = 'subtask', open_waits = 1,
                             updated_at = now() - interval '1 h'
        FROM chosen WHERE chosen.task_id = s.task_id
    """
)
WAIT_FOR_BUDGET = text(
    """
    WITH waiting AS (
        UPDATE task_status SET state = 'waiting', wait_reason = 'standing_budget', claim = 1 RETURNING task_id
    )
    INSERT INTO executions (task_id, claim, worker_id, error)
        SELECT task_id, 1, (SELECT id FROM workers),
               '{"budget": "00000000-0000-0000-0000-000000000000", "step": {"tokens": 60, "microdollars": 0}}'
            FROM waiting
    """
)
CACHE = text(
    "INSERT INTO cached_results (key, output, bytes, task_id, step, expires_at) "
    "SELECT 'key-' || n, '1', 1, (SELECT id FROM tasks LIMIT 1), 1, now() + n * interval '1 s' "
    "FROM generate_series(1, :pending) n"
)
CALL_IN_BATCHES = text(
    "INSERT INTO batch_calls (task_id, step, claim, custom_id, model, body, bytes) "
    "SELECT task_id, 1, 1, task_id::text, 'claude-sonnet-4-5', '{}', 2 FROM task_status"
)
SERVERS = 10
REMOTE_CALLS = text(
    """
    INSERT INTO remote_calls (task_id, step, namespace, server, server_version_id, remote_id, state, poll_seconds,
                              due_at)
        SELECT task_id, 1, namespace, 'server-' || row_number() OVER () % 10, gen_random_uuid(), 'x', 'working', 5,
               now() + interval '1 h'
            FROM task_status
    """
)
Call = Callable[[Connection, LifecycleDriver, UUID], Any]


@pytest.fixture
def large(driver: LifecycleDriver) -> LifecycleDriver:
    """Tables with many ended, pending and waiting tasks, and two tasks in flight."""
    fill_succeeded(driver.engine, ENDED, "A", "work")
    fill_pending(driver.engine, PENDING + WAITING, "A", "work", keys=TENANTS)
    with driver.engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(WAIT, {"waiting": WAITING})
        connection.execute(CACHE, {"pending": PENDING})
    with driver.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"VACUUM ANALYZE {', '.join(LARGE)}"))
    return driver


def dispatch(connection: Connection, driver: LifecycleDriver, task: UUID) -> None:
    assert len(lifecycle.dispatch(connection, lease=3600.0, window=64)) == 63  # one is queued


def retried(connection: Connection, driver: LifecycleDriver, task: UUID) -> None:
    assert lifecycle.release(connection, task, 1, how="retried", charged=True, delay=1.0) == "waiting"


def suspended(connection: Connection, driver: LifecycleDriver, task: UUID) -> None:
    child = {"step": 1, "name": "A", "request_hash": "", "request": {"agent": "A", "input": {}}}
    assert lifecycle.suspend(connection, task, 1, {}, [child]) == "waiting"


def written(connection: Connection, driver: LifecycleDriver, task: UUID) -> None:
    step = {"number": 1, "kind": "tool_call", "name": "t", "status": "started", "request_hash": "", "input": {}}
    assert lifecycle.write_steps(connection, task, 1, [step]) is not None


FOR_PEOPLE = TaskFilter(for_people=True)
QUEUED = text("SELECT task_id FROM task_status WHERE state = 'queued'")

HOT: dict[str, Call] = {
    "accept": lambda c, d, t: lifecycle.accept(c, [{"agent": "A", "input": {}, "key": "tenant-1"}]),
    "accept now": lambda c, d, t: lifecycle.accept_now(c, {"agent": "A", "input": {}}, lease=3600.0),
    "claim": lambda c, d, t: lifecycle.claim(c, c.scalar(QUEUED), 0, d.worker),
    "write steps": written,
    "finish": lambda c, d, t: lifecycle.finish(c, t, 1, State.SUCCEEDED, {}),
    "release": retried,
    "suspend": suspended,
    "cancel": lambda c, d, t: lifecycle.cancel(c, t, reason="test"),
    "wake due": lambda c, d, t: lifecycle.wake_due(c),
    "republish": lambda c, d, t: lifecycle.republish(c, lease=3600.0, patience=5.0, empty_queues=["work"]),
    "stalled queues": lambda c, d, t: lifecycle.stalled_queues(c, patience=5.0),
    "heal turns": lambda c, d, t: lifecycle.heal_turns(c),
    "heal clock": lambda c, d, t: lifecycle.heal_clock(c),
    "overtime": lambda c, d, t: budgets.overtime(c),
    "funded": lambda c, d, t: budgets.wake_funded(c),
    "overdue": lambda c, d, t: c.execute(OVERDUE),
    "orphaned": lambda c, d, t: c.execute(ORPHANED, {"lease": 10.0, "most": 100}),
    "unprepared": lambda c, d, t: c.execute(UNPREPARED, {"most": 500}),
    "still unprepared": lambda c, d, t: c.execute(STILL_UNPREPARED, {"tasks": [t]}),
    "inbox": lambda c, d, t: queries.list_oldest(c, FOR_PEOPLE, limit=50),
    "count of the inbox": lambda c, d, t: queries.count_up_to(c, FOR_PEOPLE, 10_000),
    "old approvals": lambda c, d, t: c.execute(APPROVAL_OLD, {"approval_seconds": 1, "most": 100}),
    "cached result": lambda c, d, t: cached_results.look(c, "key-1", seconds=3600),
}
OF_DISPATCHER: dict[str, Call] = {
    "dispatch": dispatch,
    "look": lambda c, d, t: c.execute(LOOK),
    "backlog": lambda c, d, t: c.execute(BACKLOG, {"served": ["work"]}),
    "next hold": lambda c, d, t: c.execute(NEXT_HOLD),
}
"""Calls on the dispatcher's own connection."""
# The nodes of its plan together produce some rows for each tenant and each task that it takes.
MOST = {"dispatch": 50 * (TENANTS + 64)}
MODES: tuple[Mode, ...] = ("force_custom_plan", "force_generic_plan")
in_each_mode = pytest.mark.parametrize("mode", MODES)


def searches(plans: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the large tables that a plan reads from one end to the other."""
    for plan in plans:
        for node in every_node(plan):
            if node["Node Type"] == "Seq Scan" and node.get("Relation Name") in LARGE:
                yield f"{node['Relation Name']} in: {plan.get('Query Text', '')[:200]}"


@pytest.fixture
def dispatcher(settings: Settings, database: Engine) -> Iterator[Dispatcher]:
    dispatcher = Dispatcher(settings, database, make_app(settings))
    yield dispatcher
    dispatcher.close()


def faults(engine: Engine, calls: dict[str, Call], driver: LifecycleDriver, task: UUID) -> Iterator[str]:
    """Yield the calls that search a large table or read much. Nothing is committed."""
    for (name, call), mode in product(calls.items(), MODES):
        with engine.connect() as connection:
            plans = plans_of(connection, lambda call=call, c=connection: call(c, driver, task), mode=mode)
        read = sum(rows_read(plan) for plan in plans)
        yield from (f"{name} searches {found} ({mode})" for found in searches(plans))
        if read > MOST.get(name, 200):
            yield f"{name} reads {read:.0f} rows ({mode})"


def test_hot_statements_read_little(large: LifecycleDriver, dispatcher: Dispatcher) -> None:
    large.sql("UPDATE workers SET slots = 1")  # or the window has twice as many
    [running, *_] = [message.task_id for message in large.call(lifecycle.dispatch, lease=3600.0, window=2)]
    large.claim(running)
    found = [*faults(large.engine, HOT, large, running), *faults(dispatcher._dedicated, OF_DISPATCHER, large, running)]
    assert "\n".join(found) == ""


@in_each_mode
def test_pass_over_waits_reads_its_stretch_once(large: LifecycleDriver, mode: Mode) -> None:
    with large.engine.connect() as connection:
        plans = plans_of(connection, lambda: lifecycle.heal_waits(connection, limit=WAITING // 2), mode=mode)
    assert list(searches(plans)) == []
    assert sum(rows_read(plan) for plan in plans) < 6 * WAITING
    with large.engine.connect() as connection:
        assert lifecycle.heal_waits(connection, limit=WAITING + 1) == (0, None)


@in_each_mode
def test_raised_standing_budget_looks_at_each_waiting_task_once(driver: LifecycleDriver, mode: Mode) -> None:
    fill_pending(driver.engine, WAITING, "A", "work")
    with driver.engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(WAIT_FOR_BUDGET)
    with autocommit(driver.engine).connect() as connection:
        # If autovacuum did so during the transaction, it found no executions.
        connection.execute(text("ANALYZE task_status, executions"))
    with driver.engine.connect() as connection:
        plans = plans_of(connection, lambda: standing_budgets.wake(connection, limit=WAITING // 5), mode=mode)
        assert connection.scalar(text("SELECT count(*) FROM task_status WHERE state = 'pending'")) == WAITING // 5
    assert sum(rows_read(plan) for plan in plans) < 30 * WAITING


@in_each_mode
@pytest.mark.parametrize("stopped", [False, True])
def test_batch_is_gathered_in_a_few_passes_over_its_calls(driver: LifecycleDriver, stopped: bool, mode: Mode) -> None:
    fill_pending(driver.engine, WAITING, "A", "work", keys=TENANTS)
    with driver.engine.begin() as connection:
        connection.execute(CALL_IN_BATCHES)
        if stopped:
            stops.stop(connection, stops.target_of("key", "default", "tenant-1"))
    with autocommit(driver.engine).connect() as connection:
        connection.execute(text("ANALYZE task_status, batch_calls"))
    with driver.engine.connect() as connection:
        plans = plans_of(
            connection, lambda: batches.gather(connection, most=WAITING, largest=1 << 20, age=0.0), mode=mode
        )
        gathered = connection.scalar(text("SELECT calls FROM message_batches"))
    assert gathered == (WAITING - WAITING // TENANTS if stopped else WAITING)
    assert sum(rows_read(plan) for plan in plans) < 40 * WAITING


@in_each_mode
def test_remote_poll_reads_only_calls_that_are_due(driver: LifecycleDriver, mode: Mode) -> None:
    fill_pending(driver.engine, WAITING, "A", "work", keys=TENANTS)
    with driver.engine.begin() as connection:
        connection.execute(REMOTE_CALLS)
        connection.execute(text("UPDATE remote_calls SET due_at = now() WHERE step = 1 AND server = 'server-1'"))
    with autocommit(driver.engine).connect() as connection:
        connection.execute(text("VACUUM ANALYZE remote_calls"))
    with driver.engine.connect() as connection:
        plans = plans_of(
            connection, lambda: remote_calls.claim(connection, most=16, each=4, busy={}, hold=60.0), mode=mode
        )
        left = connection.scalar(text("SELECT count(*) FROM remote_calls WHERE due_at <= now()"))
    due = WAITING // SERVERS
    assert left == due - 4
    assert sum(rows_read(plan) for plan in plans) < 3 * due


@pytest.mark.parametrize("statement", [LOOK, BACKLOG, NEXT_HOLD], ids=["look", "backlog", "next hold"])
def test_dispatcher_keeps_no_plan_for_an_empty_table(
    driver: LifecycleDriver, dispatcher: Dispatcher, statement: TextClause
) -> None:
    """A bulk submission may come before the next ANALYZE, which renews plans."""
    query = str(statement).replace("ANY (:served)", "ANY ('{work}')")
    with dispatcher.statements.connect() as connection:
        connection.exec_driver_sql(f"PREPARE hot AS {query}")
        connection.exec_driver_sql("EXECUTE hot")
        fill_pending(driver.engine, 2000, "A", "work")
        [[plan]] = connection.exec_driver_sql("EXPLAIN (FORMAT JSON) EXECUTE hot").one()
        assert list(searches([plan])) == []
