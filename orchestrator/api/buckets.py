"""Token buckets in memory: each holds a minute's requests, and fills evenly."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from dataclasses import dataclass

MINUTE = 60.0
MOST = 10_000
"""Buckets that are kept, the last used ones: a flood of names takes little memory."""


@dataclass(frozen=True, slots=True)
class Level:
    """The state of a bucket after a request.

    Attributes:
        allowed: it had room for the request.
        left: the requests for which it has room now.
        next_in: seconds until it has room for another one.
        full_in: seconds until it is full again.
    """

    allowed: bool
    left: int
    next_in: int
    full_in: int


class Buckets:
    """Token buckets by name. For one event loop."""

    def __init__(self) -> None:
        self._tokens: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        """Return how many buckets are kept."""
        return len(self._tokens)

    def take(self, name: str, per_minute: int, *, now: float | None = None) -> Level:
        """Take room for a request, if there is any."""
        return self._level(name, per_minute, 1, time.monotonic() if now is None else now)

    def look(self, name: str, per_minute: int, *, now: float | None = None) -> Level:
        """Return the level, and whether there is room for a request, without taking any."""
        return self._level(name, per_minute, 0, time.monotonic() if now is None else now)

    def _level(self, name: str, per_minute: int, wanted: int, now: float) -> Level:
        tokens, since = self._tokens.get(name, (float(per_minute), now))
        tokens = min(float(per_minute), tokens + (now - since) * per_minute / MINUTE)
        allowed = tokens >= 1
        if wanted:
            tokens -= allowed
            self._tokens[name] = tokens, now
            self._tokens.move_to_end(name)
            if len(self._tokens) > MOST:
                self._tokens.popitem(last=False)
        rate = per_minute / MINUTE
        return Level(
            allowed,
            int(tokens),
            max(1, math.ceil((1 - tokens) / rate)),
            math.ceil((per_minute - tokens) / rate),
        )
