"""Synthetic load: four weeks of hourly figures with planted anomalies, and how well a detector finds them.

Figures are drawn as they come about: a p95 is an order statistic of the tasks of the hour, read from the histogram's
buckets; failures are binomial around a rate that varies from hour to hour. What a shape looks like (seasons, tails,
growth, holes) is the caller's.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

from orchestrator.alerts.detector import Hour, Signal, Subject
from orchestrator.observe.histogram import BOUNDS, quantile

HOURS = 4 * 168


@dataclass(frozen=True)
class Planted:
    """An anomaly of one subject: hours `begin` to `end` (exclusive), and what it changes.

    Attributes:
        factor: of a time, a cost or a volume; of failures, what is added to their share.
        ramp: hours in which it grows to the factor.
    """

    signal: Signal
    begin: int
    end: int
    factor: float
    ramp: int = 0

    def at(self, hour: int) -> float:
        """Return the factor in an hour."""
        grown = min(1.0, (hour - self.begin + 1) / (self.ramp + 1))
        return self.factor * grown if self.signal is Signal.FAILURES else self.factor**grown if self.factor else 0.0


@dataclass
class Shape:
    """A kind of load.

    Attributes:
        volume: expected tasks in an hour.
        busy: factor of run and wait times by hour, as load makes them.
        tail: draw of a duration's factor from a uniform number.
        burst: spread of volumes between hours (of a lognormal factor).
        wander: spread of the hourly factor of times and costs.
        lasting: correlation of that factor, and of volumes, between one hour and the next.
        failing: expected share of failures, and its concentration between hours (of a beta distribution).
        missing: hours that nothing is known of.
        begins: the first hour of the subject.
    """

    volume: Callable[[int], float]
    busy: Callable[[int], float] = lambda hour: 1.0
    tail: Callable[[float], float] = lambda uniform: math.exp(0.7 * _normal(uniform))
    run: float = 4.0
    wait: float = 2.0
    dollars: float = 0.02
    burst: float = 0.15
    wander: float = 0.1
    lasting: float = 0.0
    failing: tuple[float, float] = (0.02, 200.0)
    missing: frozenset[int] = frozenset()
    begins: int = 0
    hours: int = HOURS


@dataclass
class Score:
    """Alerts and planted anomalies. An alert is a run of findings about one figure of one subject."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    found: int = 0
    missed: list[str] = field(default_factory=list)

    @property
    def precision(self) -> float:
        """Share of alerts that are about an anomaly."""
        return self.right / max(1, self.right + len(self.wrong))

    @property
    def recall(self) -> float:
        """Share of anomalies with an alert."""
        return self.found / max(1, self.found + len(self.missed))

    def __str__(self) -> str:
        """For people."""
        return (
            f"precision {self.precision:.3f} ({self.right} of {self.right + len(self.wrong)} alerts), "
            f"recall {self.recall:.3f} ({self.found} of {self.found + len(self.missed)} anomalies)"
        )


def hours_of(shape: Shape, planted: Sequence[Planted], dice: random.Random) -> Iterator[Hour]:
    """Yield the figures of a subject, hour by hour."""
    drift = [0.0, 0.0, 0.0]
    for hour in range(shape.hours):
        drift = [_next(shape, each, dice) for each in drift]
        if hour < shape.begins:
            yield Hour()
            continue
        now = {each.signal: each.at(hour) for each in planted if each.begin <= hour < each.end}
        drawn = _drawn(shape, hour, now, drift, dice)
        yield Hour() if hour in shape.missing else drawn


def _next(shape: Shape, last: float, dice: random.Random) -> float:
    """Draw the next value of a series with a spread of 1 that keeps a part of its last value."""
    return shape.lasting * last + math.sqrt(1 - shape.lasting**2) * dice.gauss(0, 1)


def _drawn(shape: Shape, hour: int, now: dict[Signal, float], drift: list[float], dice: random.Random) -> Hour:
    volume = shape.volume(hour) * math.exp(shape.burst * drift[0]) * now.get(Signal.VOLUME, 1.0)
    tasks = _poisson(volume, dice)
    mean, concentration = shape.failing
    rate = dice.betavariate(mean * concentration, (1 - mean) * concentration) if mean else 0.0
    rate = min(1.0, now.get(Signal.FAILURES, 0.0) + rate)
    failed = _binomial(tasks, rate, dice)
    pace = shape.busy(hour) * math.exp(shape.wander * drift[1])
    queue = shape.wait * 2 * shape.busy(hour) * pace * math.exp(dice.gauss(0, 0.4)) * now.get(Signal.QUEUE, 1.0)
    if not tasks:
        return Hour(ended=0, queue=queue)
    return Hour(
        ended=tasks,
        failed=failed,
        run=_p95(shape, tasks, shape.run * pace * now.get(Signal.RUN, 1.0), dice),
        wait=_p95(shape, tasks, shape.wait * shape.busy(hour) * pace * now.get(Signal.WAIT, 1.0), dice),
        claims=tasks,
        cost=_mean_cost(shape, tasks, now.get(Signal.COST, 1.0) * math.exp(shape.wander * drift[2]), dice),
        queue=queue,
    )


def _p95(shape: Shape, tasks: int, scale: float, dice: random.Random) -> float:
    """Draw the 95th percentile of so many durations, in the histogram's resolution."""
    rank = max(1, math.ceil(0.95 * tasks))
    seconds = scale * shape.tail(dice.betavariate(rank, tasks - rank + 1))
    bucket = bisect_right(BOUNDS, seconds)
    middle = quantile([0] * bucket + [1], 0.95)
    assert middle is not None
    return middle


def _mean_cost(shape: Shape, tasks: int, factor: float, dice: random.Random) -> float:
    few = min(tasks, 15)
    mean = sum(shape.tail(dice.random()) for _ in range(few)) / few
    return shape.dollars * factor * mean


def score(subjects: Sequence[tuple[str, Shape, Sequence[Planted]]], seed: int, slack: int = 2) -> Score:
    """Let the detector judge all subjects from their third day on, and count.

    Args:
        slack: hours after the end of an anomaly in which an alert about it may begin or end.
    """
    total = Score()
    for name, shape, planted in subjects:
        dice = random.Random(f"{seed} {name}")
        alerts = _alerts(shape, planted, dice)
        for signal, begin, end in alerts:
            about = any(p.signal is signal and p.begin - 1 < end and begin < p.end + slack for p in planted)
            total.right += about
            if not about:
                total.wrong.append(f"{name}: {signal} in hours {begin} to {end}")
        for each in planted:
            hit = any(s is each.signal and b < each.end + slack and each.begin < e for s, b, e in alerts)
            total.found += hit
            if not hit:
                total.missed.append(f"{name}: {each}")
    return total


def _alerts(shape: Shape, planted: Sequence[Planted], dice: random.Random) -> list[tuple[Signal, int, int]]:
    """Return the alerts; two with at most two quiet hours between them are one."""
    subject = Subject()
    alerts: list[tuple[Signal, int, int]] = []
    open_: dict[Signal, tuple[int, int]] = {}
    for number, hour in enumerate(hours_of(shape, planted, dice)):
        for finding in subject.judge(hour):
            begin, end = open_.get(finding.signal, (number, number))
            if number - end > 2:
                alerts.append((finding.signal, begin, end))
                begin = number
            open_[finding.signal] = (begin, number + 1)
    return alerts + [(signal, *span) for signal, span in open_.items()]


def _poisson(mean: float, dice: random.Random) -> int:
    if mean > 60:
        return max(0, round(dice.gauss(mean, math.sqrt(mean))))
    limit, product, drawn = math.exp(-mean), dice.random(), 0
    while product > limit:
        product *= dice.random()
        drawn += 1
    return drawn


def _binomial(trials: int, rate: float, dice: random.Random) -> int:
    expected = trials * min(rate, 1 - rate)
    if expected < 30:
        return sum(dice.random() < rate for _ in range(trials))
    return min(trials, max(0, round(dice.gauss(trials * rate, math.sqrt(trials * rate * (1 - rate))))))


def _normal(uniform: float) -> float:
    return NormalDist().inv_cdf(min(max(uniform, 1e-12), 1 - 1e-12))
