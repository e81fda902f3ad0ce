"""Leader election: one orchestrator at a time runs a singleton duty.

The leader holds a session advisory lock on a dedicated connection. A leader that dies loses its connection and the
lock; so does one that hangs, because the server ends a session that is silent for a lease. Leadership saves work, but
is no guarantee: a former leader may not know yet that it lost the lock, so its work must be safe to repeat.
"""

from __future__ import annotations

import psycopg
import structlog

from shared.database.sessions import open_session
from shared.settings import Settings

log = structlog.get_logger(__name__)


class Leadership:
    """Leadership of one duty. For one thread."""

    def __init__(self, settings: Settings, duty: str) -> None:
        """Connect on first use.

        Args:
            duty: name of the duty that one orchestrator at a time runs.
        """
        self.duty = duty
        self.settings = settings
        self._connection: psycopg.Connection | None = None
        self._held = False

    def held(self) -> bool:
        """Return whether this process leads; take the lead if it is free. Call it before each piece of work.

        Raises:
            psycopg.Error: the database is unavailable; the lead is lost.
        """
        try:
            if self._connection is None:
                self._connection = self._connect()
            if self._held:
                self._connection.execute("SELECT 1")
            elif self._take(self._connection):
                self._held = True
                log.info("leading", duty=self.duty)
        except psycopg.Error:
            self.release()
            raise
        return self._held

    def release(self) -> None:
        """Give up the lead, if it is held."""
        self._held = False
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> psycopg.Connection:
        lease_ms = int(self.settings.lease_seconds * 1000)
        return open_session(self.settings, self.duty, idle_session_timeout=lease_ms, statement_timeout=lease_ms)

    def _take(self, connection: psycopg.Connection) -> bool:
        row = connection.execute(
            "SELECT pg_try_advisory_lock(hashtext('minions ' || current_schema()), hashtext(%s))", (self.duty,)
        ).fetchone()
        return bool(row and row[0])
