"""Login attempts are limited by address: each process counts for itself."""

from __future__ import annotations

from orchestrator.api.addresses import network_of
from orchestrator.api.buckets import Buckets
from shared.errors import TooManyRequests

PER_MINUTE = 10


class Attempts:
    """The attempts of the last minute. For one event loop."""

    def __init__(self) -> None:
        self._networks = Buckets()

    def count(self, address: str | None) -> None:
        """Count an attempt, whether it succeeds or not.

        Args:
            address: attempts without a known address are counted together.

        Raises:
            TooManyRequests: it is not permitted yet.
        """
        level = self._networks.take(network_of(address), PER_MINUTE)
        if not level.allowed:
            raise TooManyRequests(
                f"Too many login attempts from this address. Try again in {level.next_in} s.",
                retry_after=level.next_in,
            )
