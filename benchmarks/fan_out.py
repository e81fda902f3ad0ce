"""Fan-out and join: many tasks at once, and their outputs in one list, from the submission to the result."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.bench import Bench
from benchmarks.samples import Figures, Table, alternate
from benchmarks.systems import BASE
from benchmarks.systems.system import Composes


def run(bench: Bench) -> list[Table]:
    """Measure the systems that can join."""
    tasks = bench.size(1000, 200)
    systems: list[Composes] = bench.systems(able_to=Composes)
    samples = alternate(bench.rounds, {system.name: _measure(system, tasks) for system in systems})
    return [Figures("fan-out", f"fan-out to {tasks:,} tasks, and join", "s", samples, False, BASE)]


def _measure(system: Composes, tasks: int) -> Callable[[], float]:
    def measure() -> float:
        began = time.perf_counter()
        system.fan_out(tasks)
        return time.perf_counter() - began

    return measure
