"""Anomalies in the hourly figures of an agent, with robust statistics and a weekly season. No database, no clock.

An hour is compared with what was to be expected: the median of the same hour of the week in up to four earlier weeks
(with the hours beside it), moved by the recent level. The unit of the comparison is the spread of earlier errors of the
same prediction, so that what is hard to predict needs a larger deviation. `docs/alerts.md` has the sources.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

DAY, WEEK = 24, 168
WEEKS = 4
"""Earlier weeks that an expectation is made of."""
KEPT = WEEKS * WEEK + 1
"""Hours that are kept: those that an expectation may need."""
HOURS_BEFORE = WEEKS * WEEK
"""Hours of the past that a new leader reads."""
BESIDE = (-1, 0, 1)
FEWEST_DAYS = 2
FEWEST_PEAKS = 3
HALF_DAY = 12
RECALLED = 2 * WEEK + DAY
"""Hours in which an earlier deviation is looked for."""
RECENT = DAY
FEWEST_RECENT = 6
TRUST_IN_LEVEL = 0.8
ERRORS = 2 * WEEK
"""Hours whose errors the spread is estimated from."""
FEWEST_ERRORS = DAY
NORMAL_MAD = 1.4826
"""A standard deviation in median absolute deviations, for normally distributed values."""
NORMAL_P98 = 2.05
ADOPTED_AFTER = 72
"""Hours of a deviation without a pause, after which it is the new level."""
UNKNOWN = math.nan


class Signal(StrEnum):
    """A figure that is watched."""

    RUN = "run"
    WAIT = "wait"
    FAILURES = "failures"
    COST = "cost"
    QUEUE = "queue"
    VOLUME = "volume"


@dataclass(frozen=True, slots=True)
class Hour:
    """The figures of a subject in one hour. None: unknown, or too few to say.

    Attributes:
        ended: tasks that succeeded or failed.
        run: p95 of the run time, in seconds.
        claims: number of claims that `run` and `wait` are about.
        cost: dollars per ended task.
        queue: mean age of the oldest pending task, in seconds.
    """

    ended: int | None = None
    failed: int = 0
    run: float | None = None
    wait: float | None = None
    claims: int = 0
    cost: float | None = None
    queue: float | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """A figure that is out of its expected range.

    Attributes:
        value: the figure, in the signal's unit: seconds, dollars per task, a share, tasks in an hour.
        usual: the expected figure.
        low: lower end of the expected range.
    """

    signal: Signal
    value: float
    usual: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The deviations that matter for a figure.

    Attributes:
        sign: 1: too high is wrong; -1: too low.
        offset: added before the logarithm: changes of less do not matter.
        floor: the least spread that is assumed, in natural logarithms.
        sampling: the variance of a figure from one event, in the same unit.
        factor: by which the figure must deviate in the hour that raises an alert.
        fewest: the least number of events in an hour that make a figure.
        least: the least figure that must be expected.
        weekly: only the same hour of earlier weeks says what to expect: after a day off, other days do not.
    """

    sign: int
    offset: float
    floor: float
    sampling: float = 0.0
    factor: float = 1.6
    fewest: int = 0
    least: float = 0.0
    weekly: bool = False


SENSITIVITIES = {
    Signal.RUN: Sensitivity(1, offset=0.05, floor=0.15, sampling=2.0, fewest=10),
    Signal.WAIT: Sensitivity(1, offset=0.5, floor=0.15, sampling=2.0, fewest=10),
    Signal.COST: Sensitivity(1, offset=0.0001, floor=0.1, sampling=1.0, fewest=5),
    Signal.QUEUE: Sensitivity(1, offset=5.0, floor=0.2),
    Signal.VOLUME: Sensitivity(-1, offset=1.0, floor=0.15, sampling=1.0, factor=8.0, least=20.0, weekly=True),
}

SLACK = 1.5
"""Units of a deviation that count for nothing in the cumulative sum."""
DECISION = 3.0
"""The cumulative sum that raises an alert: one hour of 4.5 units, two of 3, four of 2.25."""
LARGEST = 2 * DECISION
"""No sum is larger, so that it soon ends."""
CAUTION = 1.5
"""In the first week, what an hour of the week has is not known yet: this number of units counts as one."""
KEEPS = 2.0
"""Units that keep an alert."""
KEEPING = 1.3
"""The factor that keeps an alert."""


class History:
    """Figures by the hour, oldest first, without those of hours that deviate.

    A deviation that has lasted for three days is the new level: its hours are no exception any more.
    """

    def __init__(self, *kept: int) -> None:
        """Create it with a column for each number of hours to keep."""
        self.columns = tuple(array("f") for _ in kept)
        self._kept = kept
        self._episode: list[tuple[float, ...]] = []

    @property
    def deviates(self) -> bool:
        """True if the last hour deviates."""
        return bool(self._episode)

    def append(self, row: tuple[float, ...], *, deviates: bool) -> None:
        """Add an hour."""
        if deviates:
            self._episode.append(row)
        else:
            self._episode.clear()
        for column, most, value in zip(self.columns, self._kept, row, strict=True):
            column.append(UNKNOWN if deviates else value)
            if len(column) > most + DAY:
                del column[:DAY]
        if len(self._episode) >= ADOPTED_AFTER:
            self._adopt()

    def _adopt(self) -> None:
        for column, values in zip(self.columns, zip(*self._episode, strict=True), strict=True):
            column[-len(values) :] = array("f", values)
        self._episode.clear()


class LevelSeries:
    """A positive figure by the hour, on a logarithmic scale."""

    def __init__(self, signal: Signal) -> None:
        self.signal = signal
        self.sensitivity = SENSITIVITIES[signal]
        self._history = History(KEPT, ADOPTED_AFTER, ERRORS)
        self._values, self._residuals, self._errors = self._history.columns
        self._all = array("f")
        self._sum = 0.0

    def learn(self, value: float | None, events: int, *, deviates: bool = False) -> None:
        """Add an hour without judging it.

        Args:
            deviates: it was judged before, and is no example of what to expect.
        """
        shown = self._shown(value, events)
        season, expected = self._expectation()
        self._append(shown, season, expected, events, deviates=deviates)

    def judge(self, value: float | None, events: int) -> Finding | None:
        """Add an hour; return what is wrong with it."""
        shown = self._shown(value, events)
        season, expected = self._expectation()
        # Clocks change, and a nightly job may begin an hour late: the hours beside are no surprise either.
        beside = [season, *known([self._season(ahead) for ahead in (-1, 1)])]
        shift = (
            max(each - season for each in beside)
            if self.sensitivity.sign > 0
            else min(each - season for each in beside)
        )
        error = shown - expected
        finding = None if math.isnan(error) else self._compare(value or 0.0, shown, expected + shift, events)
        if finding is None and self._history.deviates:
            self._sum = 0.0
        self._append(shown, season, expected, events, deviates=finding is not None)
        return finding

    def _shown(self, value: float | None, events: int) -> float:
        if value is None or events < self.sensitivity.fewest:
            return UNKNOWN
        return math.log(max(0.0, value) + self.sensitivity.offset)

    def _append(self, shown: float, season: float, expected: float, events: int, *, deviates: bool) -> None:
        error = (shown - expected) / self._noise(expected, events)
        self._history.append((shown, shown - season, error), deviates=deviates)
        self._all.append(shown)
        if len(self._all) > RECALLED + DAY:
            del self._all[:DAY]

    def _expectation(self) -> tuple[float, float]:
        """Return what the season alone lets expect, and that with the recent level."""
        season = self._season()
        recent = known(self._residuals[-RECENT:])
        level = median(recent) if len(recent) >= FEWEST_RECENT else 0.0
        return season, season + TRUST_IN_LEVEL * level

    def _season(self, ahead: int = 0) -> float:
        return seasonal(self._values, ahead, days=not self.sensitivity.weekly)

    def _noise(self, expected: float, events: int) -> float:
        """Return the spread that a figure has at least, from this number of events."""
        seen = events if self.sensitivity.fewest else self._figure(expected)
        return math.sqrt(self.sensitivity.floor**2 + self.sensitivity.sampling / max(1.0, seen))

    def _spread(self) -> float:
        """Return the spread of predictions in units of the noise: by the median of errors, and by the largest ones."""
        errors = known(self._errors[-ERRORS:])
        if len(errors) < FEWEST_ERRORS:
            return math.inf
        middle = median(errors)
        usual = NORMAL_MAD * median(abs(error - middle) for error in errors)
        signed = sorted(self.sensitivity.sign * error for error in errors)
        large = signed[int(0.98 * (len(signed) - 1))] / NORMAL_P98
        return max(1.0, usual, large) * (1.0 + FEWEST_ERRORS / len(errors) / 2)

    def _compare(self, value: float, shown: float, expected: float, events: int) -> Finding | None:
        unit = self._spread() * self._noise(expected, events)
        if len(self._all) < WEEK:
            unit *= CAUTION
        usual, size = self._figure(expected), self.sensitivity.sign * (shown - expected)
        if usual < self.sensitivity.least or self._recurs(shown, unit) or self._peaks(shown, size, unit):
            self._sum = 0.0
            return None
        self._sum = min(max(0.0, self._sum + size / unit - SLACK), LARGEST)
        begins = self._sum >= DECISION and size >= math.log(self.sensitivity.factor) and size / unit >= KEEPS
        keeps = self._history.deviates and size >= max(KEEPS * unit, math.log(KEEPING))
        if not begins and not keeps:
            return None
        span = (DECISION + SLACK) * unit
        return Finding(self.signal, value, usual, self._figure(expected - span), self._figure(expected + span))

    def _recurs(self, shown: float, unit: float) -> bool:
        """Return whether it deviated in the same way a week ago: then it is the season."""
        if not self._was_seen(WEEK, shown, unit) or not math.isnan(self._values[-WEEK]):
            return False
        if abs(shown - self._all[-WEEK]) <= SLACK * unit:
            self._values[-WEEK] = self._all[-WEEK]
        return True

    def _peaks(self, shown: float, size: float, unit: float) -> bool:
        """Return whether several days of two weeks had such a peak in the same hour: a season of another length."""
        if size <= SLACK * unit:
            return False
        return sum(self._was_peak(ago, shown, unit) for ago in range(DAY, 2 * WEEK + 1, DAY)) >= FEWEST_PEAKS

    def _was_peak(self, ago: int, shown: float, unit: float) -> bool:
        """Return whether a figure was seen in an hour, and not in the half day before it: what lasts is no season."""
        return self._was_seen(ago, shown, unit) and not self._was_seen(ago + HALF_DAY, shown, unit)

    def _was_seen(self, ago: int, shown: float, unit: float) -> bool:
        return len(self._all) >= ago and self.sensitivity.sign * (shown - self._all[-ago]) <= SLACK * unit

    def _figure(self, logarithm: float) -> float:
        return max(0.0, math.exp(min(logarithm, 700.0)) - self.sensitivity.offset)


class RateSeries:
    """Failed tasks among ended ones, by the hour.

    The probability of this number of failures is bounded by Chernoff's inequality, for a rate that is higher than the
    expected one by what rates vary between hours.
    """

    SLACK, DECISION, KEEPS = 1.5, 10.0, 2.0
    """Of the negative logarithms of probabilities: what counts for nothing in the cumulative sum, the sum that raises
    an alert (one in ten thousand), and what keeps it.
    """
    FACTOR, KEPT_FACTOR, MARGIN = 2.0, 1.5, 0.05
    FEWEST_FAILED = 3
    FEWEST_ENDED = 100
    """Tasks in the history, to judge at all."""

    def __init__(self) -> None:
        self._history = History(KEPT, KEPT)
        self._failed, self._ended = self._history.columns
        self._shares = array("f")
        self._sum = 0.0

    def learn(self, failed: int, ended: int | None, *, deviates: bool = False) -> None:
        """Add an hour without judging it."""
        self._append(failed, ended, deviates=deviates)

    def judge(self, failed: int, ended: int | None) -> Finding | None:
        """Add an hour; return what is wrong with it."""
        finding = self._compare(failed, ended) if ended else None
        if finding is None and self._history.deviates:
            self._sum = 0.0
        self._append(failed, ended, deviates=finding is not None)
        return finding

    def _append(self, failed: int, ended: int | None, *, deviates: bool) -> None:
        self._history.append((failed, UNKNOWN if ended is None else ended), deviates=deviates)
        self._shares.append(failed / ended if ended else UNKNOWN)
        if len(self._shares) > WEEK + DAY:
            del self._shares[:DAY]

    def _compare(self, failed: int, ended: int) -> Finding | None:
        usual, spread, history = self._expectation()
        if history < self.FEWEST_ENDED:
            return None
        if self._recurs(failed / ended):
            self._sum = 0.0
            return None
        rate, high = failed / ended, min(0.99, usual + 2.5 * spread)
        score = chernoff(failed, ended, high)
        self._sum = min(max(0.0, self._sum + score - self.SLACK), 2 * self.DECISION)
        large = rate >= usual + self.MARGIN and (rate >= self.FACTOR * usual or 1 - rate <= (1 - usual) / 2)
        begins = large and score >= self.KEEPS and self._sum >= self.DECISION and failed >= self.FEWEST_FAILED
        keeps = score >= self.KEEPS and rate >= max(self.KEPT_FACTOR * usual, usual + self.MARGIN)
        if not begins and not (keeps and self._history.deviates):
            return None
        return Finding(Signal.FAILURES, rate, usual, 0.0, high)

    def _recurs(self, share: float) -> bool:
        """Return whether it deviated in the same way a week ago: then it is the season."""
        if len(self._shares) < WEEK or not math.isnan(self._ended[-WEEK]):
            return False
        return share <= self._shares[-WEEK] + self.MARGIN

    def _expectation(self) -> tuple[float, float, float]:
        """Return the expected rate, its standard deviation between hours, and the number of tasks it is from."""
        hours = len(self._ended)
        then = [hours - WEEK * week + beside for week in range(1, WEEKS + 1) for beside in BESIDE]
        season = self._counts([hour for hour in then if hour >= 0])
        recent = self._counts(range(max(0, hours - 3 * DAY), hours))
        rates = [(failed + 0.5) / (ended + 10.0) for failed, ended in (season, recent) if ended]
        return max(rates, default=0.0), self._spread(), season[1] + recent[1]

    def _counts(self, hours: Sequence[int]) -> tuple[float, float]:
        pairs = [(self._failed[hour], self._ended[hour]) for hour in hours if not math.isnan(self._ended[hour])]
        return sum(failed for failed, _ in pairs), sum(ended for _, ended in pairs)

    def _spread(self) -> float:
        """Return the standard deviation of rates between hours, without that of the chance in each."""
        hours = [
            (failed, ended)
            for failed, ended in zip(self._failed[-WEEK:], self._ended[-WEEK:], strict=True)
            if ended >= self.FEWEST_FAILED
        ]
        total = sum(ended for _, ended in hours)
        if not total:
            return 0.0
        mean = sum(failed for failed, _ in hours) / total
        between = sum((failed - mean * ended) ** 2 / ended for failed, ended in hours)
        excess = between - (len(hours) - 1) * mean * (1 - mean)
        return math.sqrt(max(0.0, excess) / total)


class Subject:
    """Figures of one subject. Its hours must be added in their order, without gaps."""

    def __init__(self, signals: Collection[Signal] = tuple(Signal)) -> None:
        self._levels = {signal: LevelSeries(signal) for signal in signals if signal in SENSITIVITIES}
        self._rate = RateSeries() if Signal.FAILURES in signals else None

    def learn(self, hour: Hour, deviating: Collection[Signal] = ()) -> None:
        """Add an hour of the past.

        Args:
            deviating: figures that were out of their range then.
        """
        for signal, series in self._levels.items():
            series.learn(*_of(signal, hour), deviates=signal in deviating)
        if self._rate is not None:
            self._rate.learn(hour.failed, hour.ended, deviates=Signal.FAILURES in deviating)

    def judge(self, hour: Hour) -> list[Finding]:
        """Add the latest hour; return what is wrong with it."""
        found = [series.judge(*_of(signal, hour)) for signal, series in self._levels.items()]
        if self._rate is not None:
            found.append(self._rate.judge(hour.failed, hour.ended))
        return [finding for finding in found if finding is not None]


def _of(signal: Signal, hour: Hour) -> tuple[float | None, int]:
    """Return a figure, and the number of events that it is from."""
    match signal:
        case Signal.RUN:
            return hour.run, hour.claims
        case Signal.WAIT:
            return hour.wait, hour.claims
        case Signal.COST:
            return hour.cost, hour.ended or 0
        case Signal.QUEUE:
            return hour.queue, 0
    return hour.ended, 0


def seasonal(values: Sequence[float], ahead: int = 0, *, days: bool = True) -> float:
    """Return the median of the hours like the next one: of the week if two weeks have it, else of the day.

    With one earlier week, it is the middle between that week and the last days.

    Args:
        ahead: hours after the next one, less than a day.
        days: hours of other days are like it too.
    """
    same = _every(values, WEEK, WEEKS, ahead)
    if len(same) >= 2 or not days:
        return median(same) if same else UNKNOWN
    daily = _every(values, DAY, 7, ahead)
    if len(daily) < FEWEST_DAYS:
        return UNKNOWN
    return (same[0] + median(daily)) / 2 if same else median(daily)


def known(values: Sequence[float]) -> list[float]:
    """Return the values that are known."""
    return [value for value in values if value == value]


def chernoff(successes: float, trials: float, probability: float) -> float:
    """Return a lower bound of the negative logarithm of the probability of at least this number of successes."""
    share = successes / trials
    if share <= probability:
        return 0.0
    bad = share * math.log(share / probability)
    good = (1 - share) * math.log((1 - share) / (1 - probability)) if share < 1 else 0.0
    return trials * (bad + good)


def _every(values: Sequence[float], period: int, most: int, ahead: int) -> list[float]:
    """Return the known values that are whole periods before an hour, the latest first."""
    latest = len(values) + ahead - period
    return known([values[position] for position in range(latest, max(-1, latest - most * period), -period)])
