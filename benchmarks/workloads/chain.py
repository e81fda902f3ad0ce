"""A chain: tasks one after the other, each with the output of the last, from the submission to the result."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.samples import Figures, Table, seconds
from benchmarks.systems import BASE
from benchmarks.systems.system import Composes

STEPS = 20


def run(bench: Bench) -> list[Table]:
    """Measure the systems that have chains."""
    samples = bench.measure(bench.systems(able_to=Composes), lambda system: seconds(lambda: system.chain(STEPS)))
    return [Figures("chain", f"a chain of {STEPS}", "s", samples, False, BASE)]
