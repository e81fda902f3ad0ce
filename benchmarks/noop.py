"""No-op tasks from the first submission to the last recorded outcome, and the processor time that each takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

from benchmarks.bench import Bench
from benchmarks.processor_time import Processes
from benchmarks.samples import TOTAL, Breakdown, Figures, Table, alternate
from benchmarks.systems import BASE, System


def run(bench: Bench) -> list[Table]:
    """Measure all systems."""
    tasks = bench.size(2000, 400)
    systems: list[System] = bench.systems()
    spent: dict[str, dict[str, float]] = {system.name: defaultdict(float) for system in systems}
    samples = alternate(
        bench.rounds, {system.name: _measure(bench, system, tasks, spent[system.name]) for system in systems}
    )
    milliseconds = {
        name: {role: seconds * 1000 / tasks / len(samples[name].values) for role, seconds in roles.items()}
        for name, roles in spent.items()
        if samples[name].values
    }
    for roles in milliseconds.values():
        roles[TOTAL] = sum(roles.values())
    return [
        Figures("noop", f"{tasks:,} no-op tasks, from the first submission to the last outcome", "tasks/s", samples, base=BASE),
        Breakdown("noop-cpu", "processor time of a no-op task, by process", "ms", milliseconds),
    ]


def _measure(bench: Bench, system: System, tasks: int, spent: dict[str, float]) -> Callable[[], float]:
    def measure() -> float:
        before = _processor_seconds(bench, system)
        seconds = system.run(tasks)
        for role, after in _processor_seconds(bench, system).items():
            spent[role] += after - before.get(role, 0.0)
        return tasks / seconds

    return measure


def _processor_seconds(bench: Bench, system: System) -> Mapping[str, float]:
    processes = Processes()
    return {**system.processor_seconds(processes), **bench.environment.processor_seconds(processes)}
