"""No-op tasks from the first submission to the last recorded outcome, and the processor time that each takes."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.costs import Costs
from benchmarks.samples import Breakdown, Figures, Table
from benchmarks.systems import BASE, System


def run(bench: Bench) -> list[Table]:
    """Measure all systems."""
    tasks = bench.size(2000, 400)
    systems = bench.systems()
    costs = Costs(bench.environment)

    def measure(system: System) -> float:
        with costs.of(system.name, system, tasks):
            return tasks / system.run(tasks)

    samples = bench.measure(systems, measure)
    title = f"{tasks:,} no-op tasks, from the first submission to the last outcome"
    return [
        Figures("noop", title, "tasks/s", samples, base=BASE),
        Breakdown("noop-cpu", "processor time of a no-op task, by process", "ms", costs.per_task()),
    ]
