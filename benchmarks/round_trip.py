"""One task at a time: submitted, and waited for. Minions goes over HTTP, the others use their own client."""

from __future__ import annotations

import time

from benchmarks.bench import Bench
from benchmarks.samples import Figures, Samples, Table, percentile
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
                took[system.name].take(lambda system=system: _milliseconds(system))  # type: ignore[misc]
        for name, samples in took.items():
            middle[name].failures += samples.failures
            slowest[name].failures += samples.failures
            if not samples.failures:
                middle[name].values.append(percentile(samples.values, 0.5))
                slowest[name].values.append(percentile(samples.values, 0.99))
    return [
        Figures("round-trip-p50", "one task, from the submission to its result: median", "ms", middle, False, BASE),
        Figures("round-trip-p99", "one task, from the submission to its result: 99th percentile", "ms", slowest, False, BASE),
    ]


def _milliseconds(system: RoundTrips) -> float:
    began = time.perf_counter()
    system.call()
    return (time.perf_counter() - began) * 1000
