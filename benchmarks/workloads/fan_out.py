"""Fan-out and join: many tasks at once, and their outputs in one list, from the submission to the result."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.samples import Figures, Table, seconds
from benchmarks.systems import BASE
from benchmarks.systems.system import Composes


def run(bench: Bench) -> list[Table]:
    """Measure the systems that can join."""
    tasks = bench.size(1000, 200)
    samples = bench.measure(bench.systems(able_to=Composes), lambda system: seconds(lambda: system.fan_out(tasks)))
    return [Figures("fan-out", f"fan-out to {tasks:,} tasks, and join", "s", samples, False, BASE)]
