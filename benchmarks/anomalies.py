"""What the anomaly detector was tuned on: shapes of load and seeds that no test uses.

    python -m benchmarks.anomalies

`tests/unit/orchestrator/alerts/test_detector_held_out.py` has the shapes and seeds that it was not tuned on.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter

from orchestrator.alerts.detector import Signal
from tests.support.synthetic_load import HOURS, Planted, Score, Shape, score

SEEDS = range(100, 106)


def office(hour: int) -> float:
    """More by day than by night, less at weekends."""
    day = 1.0 + 0.8 * math.sin((hour % 24 - 9) / 24 * 2 * math.pi)
    return day * (0.3 if hour // 24 % 7 >= 5 else 1.0)


SHAPES = {
    "office": Shape(volume=lambda hour: 120 * office(hour), busy=lambda hour: 0.7 + 0.4 * office(hour)),
    "steady": Shape(volume=lambda hour: 400, failing=(0.01, 500.0)),
    "small": Shape(volume=lambda hour: 25, failing=(0.05, 100.0)),
    "batches": Shape(
        volume=lambda hour: 900 if hour % 24 == 2 else 40, busy=lambda hour: 3.0 if hour % 24 == 2 else 1.0
    ),
    "drifting": Shape(volume=lambda hour: 200 * office(hour), burst=0.3, wander=0.25, lasting=0.8),
    "closed": Shape(volume=lambda hour: 0.0 if hour // 24 % 7 == 6 else 100.0),
    "noisy": Shape(volume=lambda hour: 150 * office(hour), burst=0.4, wander=0.3, failing=(0.1, 40.0)),
}
FACTORS = {
    Signal.RUN: (2.5, 6.0),
    Signal.WAIT: (4.0, 12.0),
    Signal.COST: (2.5, 6.0),
    Signal.QUEUE: (6.0, 20.0),
    Signal.FAILURES: (0.25, 0.7),
    Signal.VOLUME: (0.0, 0.0),
}


def planted(shape: Shape, dice: random.Random) -> list[Planted]:
    """Plant a few anomalies after the first week: spikes of two to six hours, and shifts of a day."""
    found = []
    for begin in sorted(dice.sample(range(8 * 24, HOURS - 30, 30), 5)):
        signal = dice.choice(list(FACTORS))
        length = 3 if signal is Signal.VOLUME else dice.choice((2, 4, 6, 24))
        if shape.volume(begin) >= 30 or signal is Signal.FAILURES or signal is Signal.QUEUE:
            found.append(Planted(signal, begin, begin + length, dice.uniform(*FACTORS[signal])))
    return found


def run() -> dict[str, Score]:
    """Score each shape over all seeds."""
    results = {}
    for name, shape in SHAPES.items():
        total = Score()
        for seed in SEEDS:
            dice = random.Random(f"plan {seed} {name}")
            subjects = [(f"{name}-{number}", shape, planted(shape, dice)) for number in range(4)]
            one = score(subjects, seed)
            total.right += one.right
            total.found += one.found
            total.wrong += one.wrong
            total.missed += one.missed
        results[name] = total
    return results


if __name__ == "__main__":
    began = time.process_time()
    for name, result in run().items():
        print(f"{name}: {result}")
        wrong, missed = Counter(each.split()[1] for each in result.wrong), result.missed
        print(f"  wrong: {dict(wrong)}", *missed[:6], sep="\n  ")
    print(f"{time.process_time() - began:.1f} s of CPU")
