"""Notifications of PostgreSQL that nobody reads: they fill a queue that all databases of a server share."""

from __future__ import annotations

from sqlalchemy import Engine, text

# More than the socket of a connection that is not read can hold.
FLOOD = text("SELECT pg_notify(:channel, n || repeat('x', 7000)) FROM generate_series(1, 2000) n")
ONE = text("SELECT pg_notify(:channel, '')")
USAGE = text("SELECT pg_notification_queue_usage()")
# The flood is a share of 0.0017.
NEARLY_EMPTY = 0.0005


def flood(engine: Engine, channel: str) -> None:
    """Notifies all who listen, very often."""
    with engine.begin() as connection:
        connection.execute(FLOOD, {"channel": channel})


def all_read(engine: Engine, channel: str) -> bool:
    """Return whether every listener has read the flood."""
    with engine.begin() as connection:
        # The server clears away what has been read when the next one comes.
        connection.execute(ONE, {"channel": channel})
        return bool(connection.scalar(USAGE) < NEARLY_EMPTY)
