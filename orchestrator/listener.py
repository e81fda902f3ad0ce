"""Waiting for a notification of PostgreSQL: what another transaction committed, told at once."""

from __future__ import annotations

import psycopg
from sqlalchemy import make_url

from shared.settings import Settings


class Listener:
    """A connection of its own that listens on one channel. Notifications are hints: whoever waits also looks."""

    def __init__(self, settings: Settings, channel: str) -> None:
        self._settings = settings
        self._channel = channel
        self._connection: psycopg.Connection | None = None

    def open(self) -> None:
        """Listens from now on, if it does not already.

        Raises:
            psycopg.Error: the database cannot be reached.
        """
        if self._connection is not None and not self._connection.closed:
            return
        url = make_url(self._settings.require_database_url()).set(drivername="postgresql")
        connection = psycopg.connect(
            url.render_as_string(hide_password=False),
            autocommit=True,
            connect_timeout=5,
            application_name=f"minions {self._channel}",
        )
        try:
            connection.execute(f"LISTEN {self._channel}")
        except psycopg.Error:
            connection.close()
            raise
        self._connection = connection

    def wait(self, seconds: float) -> None:
        """Waits for a notification, or until the time is up. It must be open."""
        assert self._connection is not None
        for _ in self._connection.notifies(timeout=seconds, stop_after=1):
            pass
        # One look answers all that have come meanwhile.
        self.drain()

    def drain(self) -> None:
        """Takes what has come, without waiting. It must be open.

        For whoever waits otherwise for long: what is never read fills the server's queue of notifications, and then
        no transaction that notifies can commit.
        """
        assert self._connection is not None
        # Each call yields what one read has brought.
        while list(self._connection.notifies(timeout=0)):
            pass

    def close(self) -> None:
        """Closes the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
