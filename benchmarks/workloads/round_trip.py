"""One task at a time: submitted, and waited for. Minions goes over HTTP, the others use their own client."""

from __future__ import annotations

from functools import partial

from benchmarks.bench import Bench
from benchmarks.samples import Figures, Samples, Table, percentile, seconds
from benchmarks.systems import BASE
from benchmarks.systems.system import RoundTrips


def run(bench: Bench) -> list[Table]:
    """Measure the systems whose callers can wait for results. The systems take turns with each task."""
    trips = bench.size(100, 30)
    systems: list[RoundTrips] = bench.systems(able_to=RoundTrips)
    middle = {system.name: Samples() for system in systems}
    slowest = {system.name: Samples() for system in systems}
    for _ in range(bench.rounds):
        took: dict[str, Samples] = {system.name: Samples() for system in systems}
        for _ in range(trips):
            for system in systems:
                took[system.name].take(partial(_milliseconds, system))
        for name, samples in took.items():
            middle[name].failures += samples.failures
            slowest[name].failures += samples.failures
            if not samples.failures:
                middle[name].values.append(percentile(samples.values, 0.5))
                slowest[name].values.append(percentile(samples.values, 0.99))
    title = "one task, from the submission to its result"
    return [
        Figures("round-trip-p50", f"{title}: median", "ms", middle, False, BASE),
        Figures("round-trip-p99", f"{title}: 99th percentile", "ms", slowest, False, BASE),
    ]


def _milliseconds(system: RoundTrips) -> float:
    return 1000 * seconds(system.call)
