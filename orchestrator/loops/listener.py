"""Waiting for PostgreSQL notifications, which announce commits of other transactions."""

from __future__ import annotations

import psycopg

from shared.database.sessions import open_session
from shared.settings import Settings


class Listener:
    """Dedicated connection that listens on one channel. Notifications are hints: the waiting code must also poll."""

    def __init__(self, settings: Settings, channel: str) -> None:
        self._settings = settings
        self._channel = channel
        self._connection: psycopg.Connection | None = None

    def open(self) -> None:
        """Start to listen, unless it already does.

        Raises:
            psycopg.Error: the database is unavailable.
        """
        if self._connection is not None and not self._connection.closed:
            return
        connection = open_session(self._settings, self._channel)
        try:
            connection.execute(f"LISTEN {self._channel}")
        except psycopg.Error:
            connection.close()
            raise
        self._connection = connection

    def wait(self, seconds: float) -> None:
        """Wait for a notification or the timeout. The listener must be open."""
        assert self._connection is not None
        for _ in self._connection.notifies(timeout=seconds, stop_after=1):
            pass
        # One poll serves all notifications that arrived in the meantime.
        self.drain()

    def drain(self) -> None:
        """Discard the received notifications without waiting. The listener must be open.

        Needed by code that waits elsewhere for long: unread notifications fill the server's queue, and then no
        transaction that notifies can commit.
        """
        assert self._connection is not None
        # Each call yields the notifications of one read.
        while list(self._connection.notifies(timeout=0)):
            pass

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
