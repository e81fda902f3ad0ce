"""Submission alone: thousands of tasks, in the fastest way that each system documents, to a queue without a worker."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.bench import Bench
from benchmarks.samples import Figures, Table, alternate, seconds
from benchmarks.systems import BASE
from benchmarks.systems.minions import MinionsTool


def run(bench: Bench) -> list[Table]:
    """Measure all systems; Minions beside the database, and over HTTP."""
    tasks = bench.size(10_000, 2000)
    measures: dict[str, Callable[[], float]] = {}
    for system in bench.systems():
        if isinstance(system, MinionsTool):
            measures["minions, beside the database"] = partial(_rate, tasks, partial(system.submit, served=False))
            measures["minions, over HTTP"] = partial(_rate, tasks, system.submit_over_http)
        elif system.submits:
            measures[system.name] = partial(_rate, tasks, partial(system.submit, served=False))
    samples = alternate(bench.rounds, measures)
    return [Figures("bulk", f"submission of {tasks:,} tasks at once", "tasks/s", samples, base=BASE)]


def _rate(tasks: int, submit: Callable[[int], None]) -> float:
    return tasks / seconds(lambda: submit(tasks))
