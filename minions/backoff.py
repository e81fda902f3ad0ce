"""Pauses between attempts: they grow exponentially and are jittered, so that processes do not retry in lockstep."""

from __future__ import annotations

import random


def exponential(failures: int, *, first: float, longest: float) -> float:
    """Return the seconds to wait before jitter: `first`, doubled with every further failure, up to `longest`.

    Args:
        failures: attempts that failed before; 0 and 1 both give `first`.
    """
    return min(longest, first * 2.0 ** min(max(0, failures - 1), 60))


def jittered(seconds: float, share: float = 0.5) -> float:
    """Return a random duration between `(1 - share) * seconds` and `seconds`.

    The default is "equal jitter" of Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    return random.uniform(seconds * (1 - share), seconds)  # noqa: S311 - jitter, not a secret
