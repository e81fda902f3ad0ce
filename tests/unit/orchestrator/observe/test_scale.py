"""The number of workers that autoscalers receive: a simulation with bursts neither starves tasks nor flaps."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from orchestrator.observe.scale import Load, Wanted, desired, mean_running

POLL, START = 30, 45
"""Seconds: how often the autoscaler asks, and how long a worker takes to start."""
SLOTS = 4
WANTED = Wanted(wait_seconds=60.0, slots_per_worker=SLOTS, least=0, most=200)


@dataclass
class Cluster:
    """An autoscaler with workers, second by second.

    Attributes:
        calm: seconds for which fewer workers must be enough before it stops some, as Kubernetes' stabilisation window.
    """

    seconds: random.Random
    run_seconds: float
    calm: int
    workers: int = 0
    starting: list[int] = field(default_factory=list)
    queue: list[int] = field(default_factory=list)
    running: list[float] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    asked: list[tuple[int, int]] = field(default_factory=list)
    ran: dict[int, float] = field(default_factory=dict)

    def tick(self, now: int, arrivals: int) -> None:
        """Advance by a second."""
        self.queue += [now] * arrivals
        self.ran[now // 3600] = self.ran.get(now // 3600, 0) + len(self.running)
        self.running = [left - 1 for left in self.running if left > 1]
        self.workers += sum(ready <= now for ready in self.starting)
        self.starting = [ready for ready in self.starting if ready > now]
        while self.queue and len(self.running) < self.workers * SLOTS:
            self.waits.append(now - self.queue.pop(0))
            self.running.append(self.seconds.expovariate(1 / self.run_seconds))
        if now % POLL == 0:
            self.scale(now)

    def scale(self, now: int) -> None:
        load = Load(
            backlog=len(self.queue),
            running=len(self.running),
            run_seconds=self.run_seconds,
            demand=self.demand(now),
            workers=self.workers,
            slots=self.workers * SLOTS,
        )
        self.asked.append((now, desired(load, WANTED)))
        up = self.asked[-1][1] - self.workers - len(self.starting)
        self.starting += [now + START] * max(0, up)
        # The highest number of the last minutes counts downwards; busy workers stop when their tasks have ended.
        highest = max(number for at, number in self.asked if at >= now - self.calm)
        if not self.starting and highest < self.workers:
            self.workers = max(highest, -(-len(self.running) // SLOTS))
        self.sizes.append(self.workers + len(self.starting))

    def demand(self, now: int) -> float:
        return mean_running(self.ran[now // 3600], self.ran.get(now // 3600 - 1, 0), now % 3600)

    def turns(self) -> int:
        """Return how often the number of workers changed its direction."""
        changes = [b - a for a, b in pairwise(self.sizes) if a != b]
        return sum((a > 0) != (b > 0) for a, b in pairwise(changes))


def poisson(seconds: random.Random, mean: float) -> int:
    count, left = 0, seconds.expovariate(1.0)
    while left < mean:
        count, left = count + 1, left + seconds.expovariate(1.0)
    return count


def load_at(shape: str, now: int) -> float:
    """Return the arrivals a second."""
    if shape == "bursts":
        return 8.0 if now % 3600 < 300 else 0.05
    if shape == "day":
        return 2.0 if now % 7200 < 3600 else 0.5
    return 1.0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", ["steady", "bursts", "day"])
@pytest.mark.parametrize("run_seconds", [2.0, 20.0])
@pytest.mark.parametrize("calm", [0, 300])
def test_simulated_load_neither_starves_nor_flaps(shape: str, seed: int, run_seconds: float, calm: int) -> None:
    seconds = random.Random(seed)
    cluster = Cluster(seconds, run_seconds, calm)
    hours = 4
    for now in range(hours * 3600):
        cluster.tick(now, poisson(seconds, load_at(shape, now)))
    ranked = sorted(cluster.waits)
    assert len(cluster.queue) < 200
    # The wanted wait, the start of a worker, and two questions of the autoscaler.
    assert ranked[int(len(ranked) * 0.99)] <= 60 + START + 2 * POLL
    assert cluster.turns() <= 4 * hours, cluster.sizes
    used = run_seconds * len(cluster.waits) / (hours * 3600 * SLOTS)
    assert sum(cluster.sizes) / len(cluster.sizes) <= 8 * used + 2, "far more workers than work"


def load(backlog: int, running: int, run_seconds: float | None, demand: float, workers: int) -> Load:
    return Load(
        backlog=backlog,
        running=running,
        run_seconds=run_seconds,
        demand=demand,
        workers=workers,
        slots=workers * SLOTS,
    )


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (load(0, 0, None, 0.0, 0), 0),
        (load(1, 0, None, 0.0, 0), 1),
        (load(0, 0, 1.0, 0.0, 10), 5),
        (load(0, 0, 1.0, 0.0, 1), 0),
        (load(0, 0, 1.0, 0.5, 1), 1),
        (load(0, 0, 1.0, 20.0, 10), 10),
        (load(1, 4, 1.0, 0.0, 1), 1),
        (load(6000, 4, 1.0, 0.0, 1), 26),
        (load(10**6, 0, 60.0, 0.0, 0), 200),
        (load(0, 30, 1.0, 30.0, 10), 10),
        (load(0, 20, 1.0, 0.0, 10), 5),
        (load(10, 0, 0.0, 0.0, 0), 1),
    ],
)
def test_desired_number_of_workers(now: Load, expected: int) -> None:
    assert desired(now, WANTED) == expected


def test_bounds_hold() -> None:
    wanted = Wanted(wait_seconds=60, slots_per_worker=1, least=2, most=9)
    assert desired(load(0, 0, None, 0.0, 0), wanted) == 2
    assert desired(load(10**6, 0, None, 0.0, 0), wanted) == 9
