"""Login attempts are limited by address, in bounded memory: each process counts for itself."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network

from shared.errors import Unavailable

MOST_AT_ONCE = 10
SECONDS_EACH = 6.0
"""One more attempt is permitted after this time: ten a minute."""
MOST_ADDRESSES = 10_000
"""Those without an attempt for the longest time are forgotten first."""


@dataclass(slots=True)
class _Budget:
    left: float
    since: float


class TooManyAttempts(Unavailable):
    """Too many login attempts from one address."""

    code, status = "too_many_attempts", 429


class Attempts:
    """The attempts of the last minute. For one event loop."""

    def __init__(self) -> None:
        self._budgets: OrderedDict[str, _Budget] = OrderedDict()

    def count(self, address: str | None) -> None:
        """Count an attempt, whether it succeeds or not.

        Args:
            address: attempts without a known address share one budget.

        Raises:
            TooManyAttempts: it is not permitted yet.
        """
        now = time.monotonic()
        budget = self._budgets.pop(name := _network(address), None) or _Budget(MOST_AT_ONCE, now)
        budget.left = min(MOST_AT_ONCE, budget.left + (now - budget.since) / SECONDS_EACH)
        budget.since = now
        self._budgets[name] = budget
        if len(self._budgets) > MOST_ADDRESSES:
            self._budgets.popitem(last=False)
        if budget.left < 1:
            seconds = math.ceil((1 - budget.left) * SECONDS_EACH)
            raise TooManyAttempts(
                f"Too many login attempts from this address. Try again in {seconds} s.", retry_after=seconds
            )
        budget.left -= 1


def _network(address: str | None) -> str:
    """Return what an attempt is counted for: a customer of a provider has all IPv6 addresses of a /64."""
    try:
        parsed = ip_address(address or "")
    except ValueError:  # unknown, or not what a trusted proxy should report
        return ""
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or ip_network((parsed.packed[:8] + bytes(8), 64)))
