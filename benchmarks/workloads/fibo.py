"""Windmill's published benchmark: a flow of 40 light tasks (`fibo(10)`) and one of 10 long ones (`fibo(33)`).

The tasks of a flow run one after the other. Here, `fibo` is a function in the sandbox and the flow is a chain. Windmill
measured on other machines (AWS m4.large, two virtual processors, one worker): compare the overhead, which is the time
above that of plain Python, and not the seconds.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.bench import Bench
from benchmarks.samples import Figures, Samples, Table, alternate, seconds
from benchmarks.systems.minions import FIBO, FIBO_FUNCTION, MinionsFunction, installation

SOURCE = "windmill.dev/docs/misc/benchmarks/competitors/results/python, 2025, AWS m4.large, one worker"
LIGHT = {
    "airflow 2.7.3": 116.221,
    "kestra 0.22.3": 6.044,
    "prefect 2.14.4": 4.872,
    "windmill 1.483.1": 4.383,
    "temporal 2.34.0": 2.967,
    "windmill 1.483.1, dedicated worker": 2.092,
    "hatchet 0.62.0": 1.222,
}
LONG = {
    "airflow 2.7.3": 54.668,
    "kestra 0.22.3": 15.786,
    "prefect 2.14.4": 15.489,
    "windmill 1.483.1": 8.347,
    "hatchet 0.62.0": 7.793,
    "windmill 1.483.1, dedicated worker": 7.701,
    "temporal 2.34.0": 7.247,
}


def run(bench: Bench) -> list[Table]:
    """Measure Minions, and plain Python on the same machine."""
    flows = (("fibo-light", 40, 10, LIGHT), ("fibo-long", bench.size(10, 2), 33, LONG))
    return [
        Figures(
            name,
            f"{tasks} x fibo({number}), one after the other",
            "s",
            _measure(bench, tasks, number),
            higher_is_better=False,
            published=published if tasks >= 10 else {},
            source=SOURCE,
        )
        for name, tasks, number, published in flows
    ]


def _measure(bench: Bench, tasks: int, number: int) -> dict[str, Samples]:
    measures: dict[str, Callable[[], float]] = {"plain Python": lambda: seconds(lambda: _plain(tasks, number))}
    if bench.systems(able_to=MinionsFunction):
        minions = installation(bench.environment)
        chain = minions.define_chain(f"bench-fibo-{tasks}", FIBO_FUNCTION, tasks)
        measures[MinionsFunction.name] = lambda: seconds(lambda: minions.client.submit(chain, {"n": number}).result())
    return alternate(bench.rounds, measures)


def _plain(tasks: int, number: int) -> None:
    functions: dict[str, Callable[[int], object]] = {}
    exec(FIBO, functions)
    for _ in range(tasks):
        functions["fibo"](number)
