"""Comparison of two agent versions by few tasks: is the canary worse than its band allows? No database, no clock.

Figures are compared each time the number of the canary's tasks has grown by a quarter. Every comparison may be wrong by
chance, so each has a lower chance than the one before, and all together one of 5 %: that of `docs/canary.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

from orchestrator.intervals import wilson

ALPHA = 0.05
"""The chance that a canary which is as good as its band allows is rolled back, by one measure at one share."""
GROWTH = 1.25
NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Sample:
    """A measure of the tasks of one version: the sums of the values and of their squares."""

    count: int = 0
    sum: float = 0.0
    squares: float = 0.0

    @property
    def mean(self) -> float:
        """The mean value; 0 without tasks."""
        return self.sum / self.count if self.count else 0.0

    @property
    def variance(self) -> float:
        """The variance of the values; 0 for fewer than two tasks."""
        return max(0.0, (self.squares - self.count * self.mean**2) / (self.count - 1)) if self.count > 1 else 0.0


IsWorse = Callable[[Sample, Sample, float, float], bool]
"""`(canary, baseline, band, alpha)`: whether the canary is out of its band, wrong with the chance `alpha`."""


def fails_more(canary: Sample, baseline: Sample, band: float, alpha: float) -> bool:
    """Compare failure rates: the lower end of Newcombe's interval for their difference, which is made of Wilson's score
    intervals. It holds for a few tasks and for rates near 0 (R. G. Newcombe, 1998, method 10; E. B. Wilson, 1927).
    """
    z = NORMAL.inv_cdf(1 - alpha)
    difference = canary.mean - baseline.mean
    low = wilson(canary.mean, canary.count, z)[0]
    high = wilson(baseline.mean, baseline.count, z)[1]
    return difference - math.hypot(canary.mean - low, high - baseline.mean) > band


def costs_more(canary: Sample, baseline: Sample, band: float, alpha: float) -> bool:
    """Compare mean costs by their ratio: Welch's test of `canary - (1 + band) * baseline` (Fieller, 1954)."""
    return is_above(canary, baseline, alpha, factor=1 + band)


def scores_less(canary: Sample, baseline: Sample, band: float, alpha: float) -> bool:
    """Compare mean scores by their difference, with Welch's test."""
    return is_above(baseline, canary, alpha, margin=band)


def is_above(high: Sample, low: Sample, alpha: float, *, factor: float = 1.0, margin: float = 0.0) -> bool:
    """Return whether the mean of `high` is above `factor` times that of `low`, by more than `margin` and chance (B. L.
    Welch, 1947).

    A few values may lack the rare ones that differ, and so have both another mean and a low variance. Each side is
    therefore taken to vary as much as the other one at least.
    """
    excess = high.mean - factor * low.mean - margin
    variance = max(high.variance, factor**2 * low.variance)
    parts = (variance / high.count, variance / low.count)
    error = sum(parts)
    if error < 1e-18:
        return excess > 1e-9
    freedom = error**2 / (parts[0] ** 2 / (high.count - 1) + parts[1] ** 2 / (low.count - 1))
    return excess > student(alpha, freedom) * math.sqrt(error)


def student(alpha: float, freedom: float) -> float:
    """Return the quantile of Student's t that is exceeded with the chance `alpha`, by the expansion of Abramowitz and
    Stegun, 26.7.5. Its error is below 2 % from ten degrees of freedom on.
    """
    z, v = NORMAL.inv_cdf(1 - alpha), freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )


def look(count: int, min_tasks: int) -> int:
    """Return the number of the comparison that this number of tasks allows; 0 if they are too few."""
    return 1 + math.floor(math.log(count / min_tasks) / math.log(GROWTH) + 1e-9) if count >= min_tasks else 0


def alpha_of(number: int) -> float:
    """Return the chance to be wrong that a comparison may have: those of all comparisons add up to `ALPHA`."""
    return ALPHA / (number * (number + 1))
