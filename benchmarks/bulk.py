"""Submission alone: thousands of tasks, in the fastest way that each system documents, to a queue without a worker."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.bench import Bench
from benchmarks.samples import Figures, Table, alternate
from benchmarks.systems import BASE, System
from benchmarks.systems.minions import MinionsTool


def run(bench: Bench) -> list[Table]:
    """Measure all systems; Minions beside the database, and over HTTP."""
    tasks = bench.size(10_000, 2000)
    measures: dict[str, Callable[[], float]] = {}
    for system in bench.systems():
        if isinstance(system, MinionsTool):
            measures["minions, beside the database"] = _rate(system, tasks)
            measures["minions, over HTTP"] = _rate_of(tasks, system.submit_over_http)
        elif system.submits:
            measures[system.name] = _rate(system, tasks)
    samples = alternate(bench.rounds, measures)
    return [Figures("bulk", f"submission of {tasks:,} tasks at once", "tasks/s", samples, base=BASE)]


def _rate(system: System, tasks: int) -> Callable[[], float]:
    return _rate_of(tasks, lambda tasks: system.submit(tasks, served=False))


def _rate_of(tasks: int, submit: Callable[[int], None]) -> Callable[[], float]:
    def measure() -> float:
        began = time.perf_counter()
        submit(tasks)
        return tasks / (time.perf_counter() - began)

    return measure
