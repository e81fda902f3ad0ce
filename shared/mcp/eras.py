"""Knowledge of a process about servers: the era that each one speaks, and its session.

The era is a property of a server. To ask for it costs one request, and a session costs two, so the clients of a process
share them. They are forgotten after a while, and when a server contradicts them.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

from shared.mcp.protocol import MODERN

MAX_AGE = 600.0
"""Seconds after which a server is asked again."""
MOST = 1_000


@dataclass(frozen=True, slots=True)
class Known:
    """The description that a server gave of itself.

    Attributes:
        version: of the protocol.
        about: the result of `server/discover` or `initialize`.
        session: the session's id (2025-11-25); None: the server keeps none.
    """

    version: str
    about: dict[str, Any]
    session: str | None = None
    since: float = field(default_factory=time.monotonic)

    @property
    def is_modern(self) -> bool:
        """Whether the version is 2026-07-28."""
        return self.version == MODERN


@dataclass(slots=True)
class Era:
    """The era of one server. Threads may ask the server at the same time: the last answer counts.

    Attributes:
        ids: iterator of the requests' ids, which are unique within a session.
        ends_when_asked: the server ended, or gave no answer, when it was asked in the modern way.
    """

    known: Known | None = None
    ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    ends_when_asked: bool = False

    def recall(self) -> Known | None:
        """Return what is known, unless it is too old."""
        known = self.known
        return known if known is not None and time.monotonic() - known.since < MAX_AGE else None


class Eras:
    """The eras of servers, by a key that changes with the server's definition."""

    def __init__(self) -> None:
        self._eras: dict[Hashable, Era] = {}
        self._lock = threading.Lock()

    def of(self, server: Hashable) -> Era:
        """Return what is known about a server."""
        with self._lock:
            if len(self._eras) >= MOST and server not in self._eras:
                self._eras.pop(next(iter(self._eras)))
            return self._eras.setdefault(server, Era())
