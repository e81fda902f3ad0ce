"""A steady load for an hour: nothing may grow. `make soak-load`.

    python -m benchmarks.soak [--minutes M] [--rate N] [--kept SECONDS] [--json]

Submits N tasks a second (builtin tools, sandboxed functions, fan-outs), and deletes tasks that ended SECONDS ago, so
that the tables reach a steady size. Once they have, it compares the beginning with the end: dead rows, bytes of each
table and of its indexes, memory of each long-lived process, and the time from submission to the end. It prints a table,
and exits with 1 if something is not flat.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import text

from benchmarks.environment import Environment
from benchmarks.processes import Processes, anonymous, command_line
from benchmarks.systems.minions import CAPABILITY, FAN_OUT, FUNCTION, SANDBOX, TOOL, Installation
from orchestrator.retention.retention import prune
from shared.contracts.requests import TaskRequest
from shared.database.connections import autocommit, get_engine
from shared.settings import get_settings
from shared.tasks.submission import submit_within

SLOTS = 2
TICK = 0.1
PRUNE_SECONDS = 10.0
SAMPLES = 60
"""Over the whole run."""
SHORTEST_SAMPLE = 5.0
# Of 37 tasks, 32 run a tool, 4 a function, and one fans out into three.
MIX = (*[TOOL] * 32, *[FUNCTION] * 4, FAN_OUT.format(TOOL))

TABLES = text(
    "SELECT s.relname AS name, s.n_dead_tup AS dead, pg_table_size(s.relid) AS bytes, "
    "pg_indexes_size(s.relid) AS index_bytes FROM pg_stat_user_tables s "
    "WHERE s.relname IN ('tasks', 'task_status', 'task_outcomes', 'task_events', 'executions', 'steps')"
)
DURATIONS = text(
    "SELECT percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY extract(epoch FROM o.finished_at - k.created_at)) "
    "FROM task_outcomes o JOIN tasks k ON k.id = o.task_id "
    "WHERE o.finished_at > now() - :age AND k.parent_id IS NULL"
)
BACKLOG = text("SELECT count(*) FROM task_status WHERE state IN ('pending', 'queued', 'running', 'waiting')")

Sample = Mapping[str, float]


@dataclass(frozen=True)
class Tolerance:
    """How much a figure may grow: by a share, or by this much, whichever is more."""

    share: float
    least: float


TOLERANCES = {
    "dead rows": Tolerance(0.5, 2000),  # they come and go with each vacuum
    "table": Tolerance(0.15, 1.0),
    "indexes": Tolerance(0.15, 1.0),
    "memory": Tolerance(0.1, 3.0),
    "p50": Tolerance(0.5, 20.0),
    "p95": Tolerance(0.5, 50.0),
    "backlog": Tolerance(0.5, 50.0),
}
"""By the kind of a figure, the first word of its name: rows, MB or milliseconds."""


@dataclass(frozen=True)
class Verdict:
    """One figure at the beginning and at the end."""

    name: str
    beginning: float
    end: float

    @property
    def is_flat(self) -> bool:
        """Whether it has grown by no more than its tolerance."""
        allowed = TOLERANCES[self.name.partition(":")[0]]
        return self.end <= self.beginning + max(allowed.least, allowed.share * self.beginning)


def main() -> None:
    """Run the load, print the table, and exit with 1 if something is not flat."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=40.0, help="tasks per second")
    parser.add_argument("--kept", type=float, help="seconds that ended tasks are kept; by default a sixth of the run")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seconds = 60 * options.minutes
    kept = options.kept or seconds / 6
    samples = run(seconds, options.rate, kept)
    verdicts = judge([sample for at, sample in samples if at > kept + PRUNE_SECONDS])
    report(verdicts, as_json=options.json)
    sys.exit(0 if all(verdict.is_flat for verdict in verdicts) else 1)


def run(seconds: float, rate: float, kept: float) -> list[tuple[float, Sample]]:
    """Submit for some time. Return the samples, each with its time."""
    every = max(SHORTEST_SAMPLE, seconds / SAMPLES)
    samples: list[tuple[float, Sample]] = []
    with Environment(replies=()) as environment:
        minions = Installation(environment)
        worker = minions.start_worker(CAPABILITY, SLOTS)
        roots = {"orchestrator": minions.orchestrator.pid, "minion": worker.pid, **environment.server_pids()}
        with repeating(PRUNE_SECONDS, lambda: _prune(kept)), repeating(TICK, Submitter(rate)):
            began = time.monotonic()
            while (passed := time.monotonic() - began) < seconds:
                time.sleep(min(every, seconds - passed))
                sample = {**_figures(every), **_memory(roots)}
                samples.append((time.monotonic() - began, sample))
                print(f"{passed / 60:5.1f} min  p95 {sample['p95']:6.1f} ms  backlog {sample['backlog']:.0f}",
                      file=sys.stderr, flush=True)  # fmt: skip
    return samples


def judge(samples: list[Sample]) -> list[Verdict]:
    """Compare the medians of the first and of the last third of the samples, for each figure that both have."""
    third = len(samples) // 3
    if third < 1:
        raise SystemExit("The run is too short: at least three samples must follow the warm-up. Use more --minutes.")
    first, last = samples[:third], samples[-third:]
    names = [name for name in first[0] if all(name in sample for sample in (*first, *last))]
    return [
        Verdict(name, statistics.median(each[name] for each in first), statistics.median(each[name] for each in last))
        for name in names
    ]


def report(verdicts: list[Verdict], *, as_json: bool) -> None:
    """Print one row for each figure."""
    if as_json:
        print(json.dumps([{**vars(verdict), "flat": verdict.is_flat} for verdict in verdicts], indent=2))
        return
    print(f"{'':44} {'beginning':>12} {'end':>12}")
    for verdict in verdicts:
        end = "" if verdict.is_flat else "NOT FLAT"
        print(f"{verdict.name:44} {verdict.beginning:12,.1f} {verdict.end:12,.1f}  {end}")


class Submitter:
    """Submits the mix of tasks at a steady rate, one tick at a time."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.began = time.monotonic()
        self.submitted = 0
        self.agents = itertools.cycle(MIX)

    def __call__(self) -> None:
        """Submit what is due."""
        due = int(self.rate * (time.monotonic() - self.began)) - self.submitted
        if due <= 0:
            return
        requests = [_request(agent) for agent in itertools.islice(self.agents, due)]
        with get_engine().begin() as connection:
            submit_within(connection, requests, submitted_by="benchmark")
        self.submitted += due


def _request(agent: str) -> TaskRequest:
    value: dict[str, Any] = (
        {"values": [{"value": number} for number in range(3)]} if "fan-out" in agent else {"value": 1}
    )
    return TaskRequest(agent=agent, input=value)


def _prune(kept: float) -> None:
    settings = get_settings().model_copy(update={"retention_succeeded": timedelta(seconds=kept) / timedelta(days=1)})
    for _ in prune(get_engine(), settings):
        pass


@contextmanager
def repeating(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Repeat an action in a thread while the block runs.

    Raises:
        Exception: at the end of the block, what the action raised.
    """
    stopping = threading.Event()

    def repeat() -> None:
        while not stopping.wait(seconds):
            action()

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(repeat)
        try:
            yield
        finally:
            stopping.set()
        running.result()


# ------------------------------------------------------------------------------------------------- figures


def _figures(seconds: float) -> dict[str, float]:
    """Return what the database says of the last seconds, and of its tables."""
    with autocommit(get_engine()).connect() as connection:
        durations = connection.scalar(DURATIONS, {"age": timedelta(seconds=seconds)}) or [0.0, 0.0]
        tables = connection.execute(TABLES).all()
        found = {"p50": 1000 * durations[0], "p95": 1000 * durations[1], "backlog": float(connection.scalar(BACKLOG))}
    for table in sorted(tables):
        found[f"dead rows: {table.name}"] = float(table.dead)
        found[f"table: {table.name}, MB"] = table.bytes / 1e6
        found[f"indexes: {table.name}, MB"] = table.index_bytes / 1e6
    return found


def _memory(roots: Mapping[str, int]) -> dict[str, float]:
    """Return the megabytes of every long-lived process: anonymous memory, because shared buffers are not its own.

    A vacuum, and a process that runs one function, are not long-lived. Processes of one kind are one figure, which is
    left out while their number differs.
    """
    processes = Processes()
    found: dict[str, list[float]] = {}
    for name, root in roots.items():
        for pid in processes.living(root):
            if kind := _kind(name, pid, root):
                found.setdefault(kind, []).append(anonymous(pid) / 1e6)
    return {f"memory: {kind} x {len(each)}, MB": sum(each) for kind, each in sorted(found.items())}


def _kind(name: str, pid: int, root: int) -> str | None:
    line = command_line(pid)
    if not line or "autovacuum worker" in line or SANDBOX in line:
        return None
    if pid == root:
        return f"{name}, main process"
    return f"{name}, connections" if "[local]" in line else f"{name}, children"


if __name__ == "__main__":
    main()
