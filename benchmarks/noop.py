"""No-op tasks from the first submission to the last recorded outcome, and the processor time that each takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from benchmarks.bench import Bench
from benchmarks.processor_time import Processes
from benchmarks.samples import TOTAL, Breakdown, Figures, Samples, Table
from benchmarks.systems import BASE, System


def run(bench: Bench) -> list[Table]:
    """Measure all systems."""
    tasks = bench.size(2000, 400)
    spent: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    def measure(system: System) -> float:
        before = _processor_seconds(bench, system)
        took = system.run(tasks)
        for role, after in _processor_seconds(bench, system).items():
            spent[system.name][role] += after - before.get(role, 0.0)
        return tasks / took

    samples = bench.measure(bench.systems(), measure)
    title = f"{tasks:,} no-op tasks, from the first submission to the last outcome"
    return [
        Figures("noop", title, "tasks/s", samples, base=BASE),
        Breakdown("noop-cpu", "processor time of a no-op task, by process", "ms", _per_task(spent, samples, tasks)),
    ]


def _per_task(
    spent: Mapping[str, Mapping[str, float]], samples: Mapping[str, Samples], tasks: int
) -> dict[str, dict[str, float]]:
    rows = {}
    for name, roles in spent.items():
        row = {role: seconds * 1000 / tasks / len(samples[name].values) for role, seconds in roles.items()}
        rows[name] = {**row, TOTAL: sum(row.values())}
    return rows


def _processor_seconds(bench: Bench, system: System) -> Mapping[str, float]:
    processes = Processes()
    return {**system.processor_seconds(processes), **bench.environment.processor_seconds(processes)}
