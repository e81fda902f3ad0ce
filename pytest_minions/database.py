"""Emptying the tables of a test's database.

Deleting few rows takes milliseconds, and the connections of running processes stay; a new copy of a template takes a
tenth of a second, and they would have to reconnect.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from shared.database.tables import Base

ATTEMPTS = 5
TABLES = tuple(Base.metadata.tables)
LOCK = text(f"LOCK TABLE {', '.join(TABLES)} IN ACCESS EXCLUSIVE MODE")
# Deleting a few rows is many times faster than truncating, but leaves dead rows, so large tables are truncated.
LARGE = text(
    f"SELECT max(pg_table_size(name::regclass)) > 256 * 1024 FROM unnest('{{{', '.join(TABLES)}}}'::text[]) AS name"  # noqa: S608 - ours
)
NO_TRIGGERS = text("SET LOCAL session_replication_role = replica")
END_OTHERS = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE pid <> pg_backend_pid() AND datname = current_database()"
)


def empty(engine: Engine, *, but: Collection[str] = ()) -> None:
    """Delete every row, except those of the tables `but`."""

    def delete(connection: Connection) -> None:
        names = [name for name in TABLES if name not in but]
        if not but and connection.scalar(LARGE):
            connection.execute(text(f"TRUNCATE {', '.join(names)} CASCADE"))
        else:
            connection.execute(text("; ".join(f"DELETE FROM {name}" for name in names)))  # noqa: S608 - our own names

    alone(engine, delete)


def alone(engine: Engine, change: Callable[[Connection], None]) -> None:
    """Change the tables in one transaction, without triggers, while no other transaction uses them."""
    for _ in range(ATTEMPTS):
        with suppress(OperationalError):
            _change(engine, change, wait="2s")
            return
        # A connection that an earlier test left behind holds a lock, or a statement of the loops and this one wait for
        # each other. Loops that have just started may do so again.
        with engine.begin() as connection:
            connection.execute(END_OTHERS)
        engine.dispose()  # our own idle connections were among them
    _change(engine, change, wait="20s")


def _change(engine: Engine, change: Callable[[Connection], None], *, wait: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"SET LOCAL lock_timeout = '{wait}'"))
        connection.execute(LOCK)
        connection.execute(NO_TRIGGERS)
        change(connection)
