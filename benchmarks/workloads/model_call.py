"""Tasks of one model call, to a local server that replies at once: what a system adds to a call."""

from __future__ import annotations

from functools import partial

from benchmarks.bench import Bench
from benchmarks.costs import Costs
from benchmarks.samples import Breakdown, Figures, Table, alternate
from benchmarks.systems import BASE
from benchmarks.systems.system import CallsModel

WARM_UP = 10


def run(bench: Bench) -> list[Table]:
    """Measure an agent of Minions, and a Celery task that calls the model with Anthropic's client."""
    tasks = bench.size(500, 100)
    systems: list[CallsModel] = bench.systems(able_to=CallsModel)
    for system in systems:
        system.run(WARM_UP, system.submit_model_calls)
    costs = Costs(bench.environment)

    def measure(system: CallsModel) -> float:
        with costs.of(system.model_row, system, tasks):
            return tasks / system.run(tasks, system.submit_model_calls)

    samples = alternate(bench.rounds, {system.model_row: partial(measure, system) for system in systems})
    title = f"{tasks:,} tasks of one model call, from the first submission to the last outcome"
    return [
        Figures("model-call", title, "tasks/s", samples, base=BASE),
        Breakdown("model-call-cpu", "processor time of a task with one model call", "ms", costs.per_task()),
    ]
