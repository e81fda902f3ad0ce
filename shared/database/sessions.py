"""Sessions of PostgreSQL that belong to one client: open a dedicated one, and refuse a pooler that shares them.

Locks, notifications, settings and prepared statements are kept in a session. A pooler in transaction mode gives each
transaction of a client any session: a lock is then held for another client, and no notification arrives.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import uuid4

import psycopg
from sqlalchemy import make_url

from shared.database.connections import configure_session, wait_for
from shared.errors import NotConfigured
from shared.settings import Settings

# Seconds. It arrives at once; only a pooler that shares sessions, or a stalled server, lets us wait.
NOTIFICATION_PATIENCE = 10.0


def open_session(settings: Settings, purpose: str, **values: str | int) -> psycopg.Connection[Any]:
    """Open a dedicated connection in autocommit mode.

    Args:
        settings: `DATABASE_URL` and the lease in seconds.
        purpose: part of the name that PostgreSQL shows for it.
        values: settings of the session, such as `statement_timeout`.

    Raises:
        NotConfigured: there is no database address.
        psycopg.Error: the database is unavailable.
    """
    # As the engine does: libpq would not understand all that SQLAlchemy accepts in an address.
    url = make_url(settings.require_database_url())
    _, arguments = url.get_dialect()().create_connect_args(url)
    ours: dict[str, Any] = {
        "autocommit": True,
        "connect_timeout": 5,
        "application_name": f"minions {purpose}",
        "tcp_user_timeout": int(settings.lease_seconds * 1000),
    }
    connection = psycopg.connect(**{**arguments, **ours})
    if values:
        configure_session(connection, values)
    return connection


def wait_to_connect(settings: Settings) -> None:
    """Wait until the database answers.

    Raises:
        Unavailable: it does not answer.
        NotConfigured: a pooler in front of it shares sessions.
    """
    wait_for(partial(check_pooler, settings), what="The database", attempts=settings.connect_attempts)


def check_pooler(settings: Settings) -> bool:
    """Return whether a pooler is in front of PostgreSQL.

    Each pooler that shares sessions makes up the numbers of the processes that it reports at login, because a client
    has no process then. So one connection and one query are enough without a pooler.

    Raises:
        NotConfigured: it shares sessions.
        psycopg.Error: the database is unavailable.
    """
    with open_session(settings, "check") as connection:
        if connection.info.backend_pid == _process(connection):
            return False
        if not _keeps_session(connection, settings):
            raise NotConfigured(
                "DATABASE_URL leads to a pooler in transaction or statement mode, such as PgBouncer's pool_mode = "
                "transaction. There, locks, notifications and settings of a session are lost between two "
                "transactions. Set its pool_mode to session for this database, or set DATABASE_URL to the address of "
                "PostgreSQL itself."
            )
        return True


def _keeps_session(connection: psycopg.Connection[Any], settings: Settings) -> bool:
    """Return whether no other client receives the session of a connection, and notifications reach it."""
    channel = f"minion_{uuid4().hex}"
    process = _process(connection)
    connection.execute(f"LISTEN {channel}".encode())
    try:
        with open_session(settings, "check") as other:
            if _process(other) == process:
                return False
            other.execute("SELECT pg_notify(%s, '')", (channel,))
        if any(connection.notifies(timeout=NOTIFICATION_PATIENCE, stop_after=1)):
            return True
        # A server that has stalled sends it before its next answer.
        connection.execute("SELECT 1")
        return any(connection.notifies(timeout=0, stop_after=1))
    finally:
        # The pooler may keep the session for others.
        connection.execute(f"UNLISTEN {channel}".encode())


def _process(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])
