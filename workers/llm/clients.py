"""The SDKs' clients. Each call has its own.

A client's pool checks all of its connections twice for each request. With hundreds of calls at the same time, that
takes longer than the rest of a call. A client with one connection has nothing to search.
"""

from __future__ import annotations

import ssl
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, Protocol, TypeVar

import httpx2

from workers.llm.accounts import Account
from workers.llm.base import ModelRequest
from workers.llm.failures import Failures
from workers.llm.limits import ModelLimits, ReadReports, read_reports
from workers.outcomes import Postponed

IDLE_SECONDS = 60.0
"""After this time without a call, a client and its connection are closed when another call ends."""
MOST_LINES = 1000


class Closable(Protocol):
    """A client of an SDK."""

    def close(self) -> None:
        """Close its connections."""


Client = TypeVar("Client", bound=Closable)


class Clients(Generic[Client]):
    """Clients that are not in use, the last used one at the right.

    Args:
        create: returns a new client.
    """

    def __init__(self, create: Callable[[], Client]) -> None:
        self._create = create
        self._idle: deque[tuple[Client, float]] = deque()

    @contextmanager
    def lend(self) -> Iterator[Client]:
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


@dataclass(frozen=True, slots=True)
class Line(Generic[Client]):
    """The state that calls with one account share: clients, limits, and the words of their errors."""

    account: Account
    clients: Clients[Client]
    limits: ModelLimits
    failures: Failures

    def admit(self, request: ModelRequest) -> None:
        """Reserve a call within the limits, and ask the task whether it may be sent.

        Raises:
            Postponed: it must not be sent now.
        """
        tokens = request.estimated_tokens()
        self.limits.admit(request.model, tokens, request.max_tokens, request.namespace, request.rates())
        try:
            request.before_sending()
        except Postponed:
            self.limits.settle(request.model, 0, 0)
            raise


class Lines(Generic[Client]):
    """The line of each account of one kind of provider.

    Args:
        create: returns a new client for an account, which passes each response to the limits.
        read: returns the limits that a response's headers report.
    """

    def __init__(self, create: Callable[[Account, ModelLimits], Client], read: ReadReports = read_reports) -> None:
        self._create = create
        self._read = read
        self._lines: OrderedDict[tuple[str, str, str], Line[Client]] = OrderedDict()

    def of(self, account: Account) -> Line[Client]:
        """Return the line of an account."""
        line = self._lines.get(account.identity)
        if line is None:
            # Two calls that come first at the same time share one line: another would not be closed, or limited.
            line = self._lines.setdefault(account.identity, self._new(account))
            while len(self._lines) > MOST_LINES:
                self._lines.popitem(last=False)[1].clients.close()
        return line

    def close(self) -> None:
        """Close the clients that are not in use, and forget all accounts."""
        while self._lines:
            self._lines.popitem()[1].clients.close()

    def _new(self, account: Account) -> Line[Client]:
        limits = ModelLimits(account.key or "", account.provider.address, read=self._read)
        return Line(account, Clients(lambda: self._create(account, limits)), limits, Failures(account))


def without_environment(client: Any) -> Any:
    """Return a new client without the headers that its SDK took from the environment, such as those of
    ANTHROPIC_CUSTOM_HEADERS: they may be secrets, and are for another address.
    """
    client._custom_headers = {}
    return client


@lru_cache(maxsize=1)
def certificates() -> ssl.SSLContext:
    """Return the trusted certificates: reading them takes longer than all else that a new client needs."""
    return httpx2.create_ssl_context()
