"""Leadership: of several orchestrators one does what one should do.

It is a session's advisory lock on a connection of its own. Who dies loses his connection and with it the lead; so does
who hangs: the server ends a session that says nothing for a lease. It spares the others work, and is no guarantee:
a leader may not know yet that he is none any more, so what he does must be safe to be done by two.
"""

from __future__ import annotations

import psycopg
import structlog
from sqlalchemy import make_url

from shared.settings import Settings

log = structlog.get_logger(__name__)


class Leadership:
    """One duty's lead. For one thread."""

    def __init__(self, settings: Settings, duty: str) -> None:
        """Asks nobody yet.

        Args:
            duty: the name of what one orchestrator at a time does.
        """
        self.duty = duty
        self.settings = settings
        self._connection: psycopg.Connection | None = None
        self._held = False

    def held(self) -> bool:
        """Whether this process leads; takes the lead where nobody has it. Ask before each piece of work.

        Raises:
            psycopg.Error: the database cannot be reached; the lead is gone.
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
        """Gives up the lead, if it was held."""
        self._held = False
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> psycopg.Connection:
        lease_ms = int(self.settings.lease_seconds * 1000)
        url = make_url(self.settings.require_database_url()).set(drivername="postgresql")
        return psycopg.connect(
            url.render_as_string(hide_password=False),
            autocommit=True,
            connect_timeout=5,
            application_name=f"minions {self.duty}",
            tcp_user_timeout=lease_ms,
            options=f"-c idle_session_timeout={lease_ms} -c statement_timeout={lease_ms}",
        )

    def _take(self, connection: psycopg.Connection) -> bool:
        row = connection.execute(
            "SELECT pg_try_advisory_lock(hashtext('minions ' || current_schema()), hashtext(%s))", (self.duty,)
        ).fetchone()
        return bool(row and row[0])
