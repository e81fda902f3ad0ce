"""Histograms of durations over fixed bounds, the same for statistics and for Prometheus.

The bounds grow by √2, from a millisecond to twelve days. A quantile is the geometric middle of its bucket, so it is at
most 19 % away from the true one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, zip_longest

BOUNDS = tuple(0.001 * 2 ** (position / 2) for position in range(61))
"""Seconds. Bucket 0 is below the first bound, bucket n from bound n - 1 on."""
EXPOSED = range(0, len(BOUNDS), 2)
"""Positions of the bounds that Prometheus receives: powers of two."""


def add(histograms: Iterable[Sequence[int]]) -> list[int]:
    """Add up histograms, whose last buckets may be missing."""
    return [sum(bucket) for bucket in zip_longest(*histograms, fillvalue=0)]


def quantile(counts: Sequence[int], fraction: float) -> float | None:
    """Return the duration in seconds below which a fraction of the counted ones is; None if there are none."""
    wanted = fraction * sum(counts)
    for bucket, reached in enumerate(accumulate(counts)):
        if reached and reached >= wanted:
            return _middle(bucket)
    return None


def exposed(counts: Sequence[int]) -> list[tuple[str, float]]:
    """Return the cumulative buckets of a Prometheus histogram: upper bound and count."""
    full = [*accumulate([*counts, *[0] * (len(BOUNDS) + 1 - len(counts))])]
    buckets = [(f"{BOUNDS[position]:g}", float(full[position])) for position in EXPOSED]
    return [*buckets, ("+Inf", float(full[-1]))]


def _middle(bucket: int) -> float:
    bounded = min(max(bucket, 1), len(BOUNDS) - 1)
    middle = (BOUNDS[bounded - 1] * BOUNDS[bounded]) ** 0.5
    return BOUNDS[0] / 2 if bucket == 0 else BOUNDS[-1] if bucket == len(BOUNDS) else middle
