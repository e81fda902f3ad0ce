"""Cost of metrics: the page and the gauges with a million tasks, and what counting adds to a task.

    python -m benchmarks.metrics [--tasks N] [--rounds N]

Rows are created by SQL, on a private PostgreSQL. Processor time is that of PostgreSQL's process for the connection. A
task is accepted, dispatched, claimed and finished with one step, with and without marks, in alternating rounds; then
the marks are counted. Compare the shares.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Engine, text
from sqlalchemy.orm import Session

from benchmarks.backlog import prepare
from benchmarks.environment import Environment
from benchmarks.filling import empty, vacuum
from benchmarks.processes import Processes
from benchmarks.samples import seconds
from benchmarks.systems.minions import CAPABILITY, DEFINITIONS, TOOL
from orchestrator.api.metrics import MetricsPages
from orchestrator.observe import gauges
from orchestrator.observe.counting import count_ends
from orchestrator.observe.ends import MARKED
from orchestrator.observe.statistician import SHARE, STORE, Statistician
from orchestrator.observe.tally import Places
from shared.contracts.documents import parse_definition
from shared.database.connections import get_engine
from shared.database.schema import migrate
from shared.definitions.apply import store_definitions
from shared.settings import get_settings
from shared.tasks import lifecycle
from shared.tasks.states import State

SERIES = 200
BATCH = 500
STEP: dict[str, Any] = {
    "number": 1,
    "kind": "tool_call",
    "name": "echo",
    "status": "finished",
    "effect": "pure",
    "request_hash": "x" * 64,
    "input": {"value": 1},
    "output": {"value": 1},
    "started_at": "2026-11-29T12:00:00+00:00",
    "finished_at": "2026-11-29T12:00:00+00:00",
}
AGENTS = text(
    "INSERT INTO statistics (grain, kind, bucket, namespace, agent, capability, outcome, count, runs, waits) "
    "SELECT 'total', k, '1970-01-01Z', 'default', 'agent-' || n, 'capability-' || n % 10, 'succeeded', n, "
    "ARRAY[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], ARRAY[1, 2, 3] "
    "FROM generate_series(1, :series) n, unnest('{task,execution}'::text[]) k"
)
TRIGGERS = {
    "executions": ("executions_end",),
    "steps": ("steps_begin_end", "steps_change_end", "steps_retried"),
    "webhook_deliveries": ("webhook_deliveries_end",),
}
DEFAULT = "pg_current_xact_id()::text::bigint"


def main() -> None:
    """Run the benchmark and print what it measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    with Environment(replies=()):
        engine = get_engine()
        migrate(engine)
        with Session(engine) as session:
            store_definitions(session, [parse_definition(definition) for definition in DEFINITIONS])
        measure_page(options.tasks)
        measure_tasks(engine, options.rounds)


def measure_page(tasks: int) -> None:
    """Print the cost of the gauges and of the page with many pending tasks."""
    prepare(tasks, keys=200)
    engine, settings = get_engine(), get_settings()
    Statistician(settings, engine).run_once()
    with engine.begin() as connection:
        connection.execute(AGENTS, {"series": SERIES})
    with engine.connect() as connection:
        used = [cpu_seconds(connection, lambda: gauges.read(connection, settings)) for _ in range(5)]
        values = gauges.read(connection, settings)
    with engine.begin() as connection:
        connection.execute(STORE, {"gauges": json.dumps(values)})
    pages = [rendering(engine) for _ in range(50)]
    waited = [1000 * seconds(lambda: MetricsPages().get(engine, "")) for _ in range(50)]
    size = len(MetricsPages().get(engine, "")[0])
    read = statistics.median(used)
    print(f"{tasks:,} pending tasks, {SERIES} agents")
    print(f"  GET /metrics, without the cache: {statistics.median(waited):.1f} ms, {size:,} bytes")
    print(f"  of which processor time of the orchestrator: {statistics.median(pages):.1f} ms")
    print(f"  gauges: {1000 * read:.0f} ms of PostgreSQL, {100 * SHARE:g} % of a core every {read / SHARE:.0f} s")


def rendering(engine: Engine) -> float:
    """Return the processor time of a page, in milliseconds."""
    before = time.thread_time()
    MetricsPages().get(engine, "")
    return 1000 * (time.thread_time() - before)


def measure_tasks(engine: Engine, rounds: int) -> None:
    """Print what marks and counting add to a task."""
    empty(engine)
    vacuum(engine)
    marked, plain, counting = [], [], []
    for _ in range(rounds):
        switch(engine, on=False)
        plain.append(lives(engine))
        switch(engine, on=True)
        marked.append(lives(engine))
        with engine.connect() as connection:
            pid = connection.scalar(text("SELECT pg_backend_pid()"))
        before = Processes().own(pid)
        places = Places()
        while not count_ends(engine, places).complete:
            pass
        counting.append((Processes().own(pid) - before) / BATCH)
    base, with_marks, counted = (1e6 * statistics.mean(values) for values in (plain, marked, counting))
    print(f"a task's life in PostgreSQL, {rounds} rounds of {BATCH} tasks each")
    print(f"  without marks: {base:.0f} µs; with marks: {with_marks:.0f} µs ({100 * (with_marks / base - 1):+.1f} %)")
    print(f"  counting: {counted:.0f} µs a task ({100 * counted / base:.1f} %)")


def switch(engine: Engine, *, on: bool) -> None:
    """Add or remove marks: triggers, defaults and indexes."""
    with engine.begin() as connection:
        for table in MARKED:
            if table == "retried_steps":
                continue
            index = f"{table}_ended_in_idx"
            connection.exec_driver_sql(
                f"CREATE INDEX IF NOT EXISTS {index} ON {table} (ended_in) WHERE ended_in IS NOT NULL"
                if on
                else f"DROP INDEX IF EXISTS {index}"
            )
            for trigger in TRIGGERS.get(table, ()):
                connection.exec_driver_sql(f"ALTER TABLE {table} {'ENABLE' if on else 'DISABLE'} TRIGGER {trigger}")
        change = f"SET DEFAULT {DEFAULT}" if on else "DROP DEFAULT"
        connection.exec_driver_sql(f"ALTER TABLE task_outcomes ALTER COLUMN ended_in {change}")
    vacuum(engine)


def lives(engine: Engine) -> float:
    """Return the processor time of PostgreSQL for a task's life."""
    with engine.connect() as connection:
        live(connection, 20)  # plans
        return cpu_seconds(connection, lambda: live(connection, BATCH)) / BATCH


def live(connection: Connection, tasks: int) -> None:
    """Take tasks through their lives; each call is one transaction, as in production."""
    worker = connection.scalar(text("SELECT id FROM workers LIMIT 1"))
    connection.commit()
    for _ in range(tasks):
        [accepted] = lifecycle.accept(connection, [{"agent": TOOL, "input": {"value": 1}, "capability": CAPABILITY}])
        connection.execute(text("UPDATE task_status SET capability = :c WHERE task_id = :t"),
                           {"c": CAPABILITY, "t": accepted.task_id})  # fmt: skip
        connection.commit()
        lifecycle.dispatch(connection, lease=1e6, window=1000)
        connection.commit()
        lifecycle.claim(connection, accepted.task_id, 0, worker)
        connection.commit()
        lifecycle.finish(connection, accepted.task_id, 1, State.SUCCEEDED, {"output": {"value": 1}, "steps": [STEP]})
        connection.commit()


def cpu_seconds(connection: Connection, work: Callable[[], object]) -> float:
    """Return the processor time that work takes in the connection's process of PostgreSQL."""
    pid = connection.scalar(text("SELECT pg_backend_pid()"))
    before = Processes().own(pid)
    work()
    return Processes().own(pid) - before


if __name__ == "__main__":
    main()
