"""Precision and recall on shapes of load and seeds that the detector was not tuned on.

`benchmarks/anomalies.py` has those that it was tuned on. Do not tune on these: plant others instead.
"""

from __future__ import annotations

import math
import random

import pytest

from orchestrator.alerts.detector import Signal
from tests.support.synthetic_load import HOURS, Planted, Score, Shape, score

SEED = 590_218
SUBJECTS = 3


def shifts(hour: int) -> float:
    """Three shifts, the night one the busiest; a six-day week that is off on Fridays."""
    level = (1.6, 0.5, 1.0)[hour % 24 // 8]
    return level * (0.1 if hour // 24 % 7 == 4 else 1.0)


def evenings(hour: int) -> float:
    """A consumers' service: evenings and weekends."""
    peak = math.exp(-(((hour % 24) - 20) ** 2) / 18)
    return (0.4 + 1.5 * peak) * (1.6 if hour // 24 % 7 >= 5 else 1.0)


def pareto(alpha: float, uniform: float) -> float:
    return (1 - uniform) ** (-1 / alpha)


HOLIDAYS = {9, 17}
GAPS = ((130, 5), (260, 14), (391, 1), (505, 30))
HOLES = frozenset(hour for begin, length in GAPS for hour in range(begin, begin + length))
SHAPES = {
    "another week": Shape(volume=lambda hour: 90 * shifts(hour), busy=lambda hour: 0.6 + 0.5 * shifts(hour)),
    "heavy tails": Shape(
        volume=lambda hour: 250 * evenings(hour), tail=lambda uniform: pareto(1.8, uniform), burst=0.3, wander=0.15
    ),
    "missing hours": Shape(volume=lambda hour: 180 * evenings(hour), missing=HOLES),
    "low volume": Shape(volume=lambda hour: 12, failing=(0.03, 150.0)),
    "holidays": Shape(
        volume=lambda hour: 140 * evenings(hour) * (0.3 if hour // 24 in HOLIDAYS else 1.0),
        busy=lambda hour: 0.7 if hour // 24 in HOLIDAYS else 1.0,
    ),
    "growth": Shape(
        volume=lambda hour: 80 * shifts(hour) * 1.1 ** (hour / 168), busy=lambda hour: 1.03 ** (hour / 168)
    ),
    "new agent": Shape(volume=lambda hour: 100 * evenings(hour), begins=19 * 24 + 7),
    "weekly report": Shape(
        volume=lambda hour: 600 if hour % 168 == 75 else 70, busy=lambda hour: 5.0 if hour % 168 == 75 else 1.0
    ),
    "three days on": Shape(volume=lambda hour: 0.0 if hour // 24 % 7 >= 3 else 200 * evenings(hour % 24), burst=0.25),
    "slow drift": Shape(volume=lambda hour: 160, busy=lambda hour: 1.02 ** (hour / 24), lasting=0.6, wander=0.15),
}
LENGTHS = (1, 2, 3, 5, 9, 30)


def plan(shape: Shape, dice: random.Random) -> list[Planted]:
    """Plant spikes, shifts, ramps and stops, after the first week or the first three days of a new subject."""
    first = max(8 * 24, shape.begins + 76)
    planted: list[Planted] = []
    hour = first + dice.randrange(20)
    while hour < HOURS - 40:
        if (each := _one(shape, hour, dice)) is not None:
            planted.append(each)
        hour += 36 + dice.randrange(50)
    return planted


def _one(shape: Shape, begin: int, dice: random.Random) -> Planted | None:
    signal = dice.choice(list(Signal))
    length = dice.choice(LENGTHS)
    small = min(shape.volume(hour) for hour in range(begin, begin + length)) < 15
    if small and signal not in (Signal.FAILURES, Signal.QUEUE):
        return None  # too few tasks to have a p95, or a usual volume
    if any(hour in shape.missing for hour in range(begin - 1, begin + length + 1)):
        return None
    ramp = 2 if length >= 5 and dice.random() < 0.5 else 0
    match signal:
        case Signal.VOLUME:
            if min(shape.volume(hour) for hour in range(begin, begin + length)) < 40:
                return None
            return Planted(signal, begin, begin + max(2, length), 0.0)
        case Signal.FAILURES:
            least = 0.5 if length == 1 or shape.volume(begin) < 20 else 0.2
            return Planted(signal, begin, begin + length, dice.uniform(least, 0.9), ramp)
        case Signal.QUEUE:
            return Planted(signal, begin, begin + length, dice.uniform(12.0, 60.0), ramp)
    least = 6.0 if length == 1 else 3.0
    return Planted(signal, begin, begin + length, dice.uniform(least, 12.0), ramp)


def held_out(name: str, seed: int = SEED) -> Score:
    """Score a shape."""
    dice = random.Random(f"held out {seed} {name}")
    return score([(f"{name} {number}", SHAPES[name], plan(SHAPES[name], dice)) for number in range(SUBJECTS)], seed)


@pytest.fixture(scope="module")
def scores() -> dict[str, Score]:
    return {name: held_out(name) for name in SHAPES}


def test_precision_and_recall_on_held_out_shapes(scores: dict[str, Score]) -> None:
    total = Score()
    for name, each in scores.items():
        print(f"{name}: {each}", *each.wrong, *each.missed, sep="\n    ")
        total.right += each.right
        total.found += each.found
        total.wrong += each.wrong
        total.missed += each.missed
    print(f"all: {total}")
    assert total.precision >= 0.9
    assert total.recall >= 0.9
