"""The SDK's clients. Each call has its own.

A client's pool checks all of its connections twice for each request. With hundreds of calls at the same time, that
takes longer than the rest of a call. A client with one connection has nothing to search.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import anthropic

IDLE_SECONDS = 60.0
"""After this time without a call, a client and its connection are closed when another call ends."""


class Clients:
    """Clients that are not in use, the last used one at the right.

    Args:
        create: returns a new client.
    """

    def __init__(self, create: Callable[[], anthropic.Anthropic]) -> None:
        self._create = create
        self._idle: deque[tuple[anthropic.Anthropic, float]] = deque()

    @contextmanager
    def lend(self) -> Iterator[anthropic.Anthropic]:
        """Yield a client for one call: the last used one, whose connection is most likely still open, or a new one."""
        try:
            client, _ = self._idle.pop()
        except IndexError:
            client = self._create()
        try:
            yield client
        finally:
            self._idle.append((client, time.monotonic()))
            self._close_idle(time.monotonic() - IDLE_SECONDS)

    def close(self) -> None:
        """Close the clients that are not in use."""
        self._close_idle(time.monotonic())

    def _close_idle(self, before: float) -> None:
        # Calls of other threads take clients at the same time, and this call's reply is paid for.
        with suppress(IndexError):
            while self._idle[0][1] <= before:
                self._idle.popleft()[0].close()
