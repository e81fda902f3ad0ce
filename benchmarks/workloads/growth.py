"""The rate of no-op tasks while the tables grow: with a backlog, with a history, with many tenants.

Each condition is measured in the same way: SQL writes the pending tasks, and the rate is that of a number of tasks in
the middle, so that neither the filling nor the start of the workers counts, and each measured task is dispatched
while others are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from uuid import UUID

import redis
from sqlalchemy import TextClause, text

from benchmarks.bench import Bench
from benchmarks.costs import Costs
from benchmarks.filling import empty, fill_pending, fill_succeeded, vacuum
from benchmarks.samples import Breakdown, Figures, Table, alternate
from benchmarks.systems.minions import CAPABILITY, TOOL, MinionsTool, installation
from benchmarks.systems.system import PATIENCE
from orchestrator.packing import LARGEST_WINDOW
from shared.database.connections import get_engine

SKIPPED = LARGEST_WINDOW + 100
"""Tasks before the measured ones, and behind them: more than are in the broker at once."""

POLL_SECONDS = 0.05
TENANTS = 200
EMPTY = "empty tables"
# New ids are larger than those of the history.
IN_FLIGHT = text("SELECT count(*) FROM task_status WHERE state IN ('queued', 'running')")
ENDED = text("SELECT count(*) FROM executions WHERE task_id > :after AND outcome = 'succeeded'")


def run(bench: Bench) -> list[Table]:
    """Measure all conditions."""
    systems = bench.systems(able_to=MinionsTool)
    if not systems:
        return []
    [system] = systems
    measured = bench.size(8000, 300)
    backlog, history = bench.size(100_000, 10_000), bench.size(1_000_000, 50_000)
    costs = Costs(bench.environment)
    pending = SKIPPED + measured + SKIPPED

    def measure(name: str, **sizes: int) -> tuple[str, Callable[[], float]]:
        conditions = {"pending": pending, "finished": 0, "tenants": 0, **sizes}
        return name, lambda: _rate(bench, lambda tasks: costs.of(name, system, tasks), measured, **conditions)

    measures = dict(
        (
            measure(EMPTY),
            measure(f"{backlog:,} pending in the same capability", pending=backlog + pending),
            measure(
                f"{TENANTS} tenants with {backlog // TENANTS:,} pending each",
                pending=backlog + pending,
                tenants=TENANTS,
            ),
            measure(f"{history:,} finished", finished=history),
        )
    )
    samples = alternate(bench.rounds, measures)
    return [
        Figures("growth", "rate of minions, builtin tool", "tasks/s", samples, base=EMPTY),
        Breakdown("growth-cpu", "processor time of a task while the tables grow, by process", "ms", costs.per_task()),
    ]


Spent = Callable[[int], AbstractContextManager[None]]


def _rate(bench: Bench, spent: Spent, tasks: int, *, pending: int, finished: int, tenants: int) -> float:
    engine, client = get_engine(), installation(bench.environment).client
    client.pause("capability", CAPABILITY)
    _wait_until(lambda: not _count(IN_FLIGHT), "the tasks before have ended")
    empty(engine)
    with redis.Redis.from_url(bench.environment.addresses.redis_url) as broker:
        broker.delete(CAPABILITY)  # the messages of the backlog before
    if finished:
        fill_succeeded(engine, finished, TOOL, CAPABILITY)
    with engine.connect() as connection:
        last: UUID = connection.execute(text("SELECT minion_uuidv7()")).scalar_one()
    fill_pending(engine, pending, TOOL, CAPABILITY, keys=tenants)
    vacuum(engine)  # or an autovacuum of the many new rows would fall into the measurement
    client.resume("capability", CAPABILITY)
    first, began = _wait_for(SKIPPED, last)
    with spent(tasks):
        second, ended = _wait_for(first + tasks, last)
    return (second - first) / (ended - began)


def _wait_for(tasks: int, after: UUID) -> tuple[int, float]:
    """Return how many tasks have ended, at least this many, and when."""
    _wait_until(lambda: _count(ENDED, after=after) >= tasks, f"{tasks} tasks have ended")
    return _count(ENDED, after=after), time.perf_counter()


def _wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {PATIENCE:g} s: {what}")
        time.sleep(POLL_SECONDS)


def _count(query: TextClause, **values: object) -> int:
    with get_engine().connect() as connection:
        return int(connection.execute(query, values).scalar_one())
