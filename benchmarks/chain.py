"""A chain: tasks one after the other, each with the output of the last, from the submission to the result."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.bench import Bench
from benchmarks.samples import Figures, Table, alternate
from benchmarks.systems import BASE
from benchmarks.systems.system import Composes

STEPS = 20


def run(bench: Bench) -> list[Table]:
    """Measure the systems that have chains."""
    systems: list[Composes] = bench.systems(able_to=Composes)
    samples = alternate(bench.rounds, {system.name: _measure(system) for system in systems})
    return [Figures("chain", f"a chain of {STEPS}", "s", samples, False, BASE)]


def _measure(system: Composes) -> Callable[[], float]:
    def measure() -> float:
        began = time.perf_counter()
        system.chain(STEPS)
        return time.perf_counter() - began

    return measure
