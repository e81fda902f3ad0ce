"""Time for tests: instead of waiting, move everything that is stored into the past.

PostgreSQL's clock decides when something is due, and rows store the times. A database whose times are all two hours
earlier is the database of two hours later, so production code needs no hook.
"""

from __future__ import annotations

import re
from datetime import timedelta
from uuid import UUID

from sqlalchemy import Connection, DateTime, Engine, text

from pytest_minions.database import alone
from shared.contracts.durations import SECONDS
from shared.database.tables import Base

# Processes that are alive renew their rows; the audit log is signed; the rest counts by the calendar.
FIXED = frozenset(
    "workers audit_log audit_ends statistics statistics_state standing_alerts standing_reservations standing_usage "
    "tracing_state watched_hours".split()
)
COLUMNS = {
    table.name: [column.name for column in table.columns if isinstance(column.type, DateTime)]
    for table in Base.metadata.tables.values()
    if table.name not in FIXED
}
# The key of a run contains its time, and the same time comes again.
FORGET_RUNS = text("DELETE FROM idempotency_keys WHERE key LIKE 'schedule:%'")
NEXT = text(
    """
    SELECT extract(epoch FROM min(moment) - now()) FROM (
        SELECT LEAST(s.due_at, s.deadline) AS moment FROM task_status s JOIN tasks t ON t.id = s.task_id
            WHERE t.root_id = (SELECT root_id FROM tasks WHERE id = :task)
                AND s.state IN ('scheduled', 'pending', 'waiting')
        UNION ALL
        SELECT h.until_at FROM rate_holds h WHERE EXISTS (
            SELECT FROM task_status s JOIN tasks t ON t.id = s.task_id
                WHERE t.root_id = (SELECT root_id FROM tasks WHERE id = :task) AND s.state = 'pending')
    ) AS due WHERE moment > now()
    """
)
DURATION = re.compile(r"(?:[0-9]+[smhd])+")
PART = re.compile(r"([0-9]+)([smhd])")


def duration(given: timedelta | str) -> timedelta:
    """Return a duration such as `timedelta(hours=2)`, `2h` or `1h30m`.

    Raises:
        ValueError: it is negative, or not written like that.
    """
    if isinstance(given, timedelta):
        if given < timedelta(0):
            raise ValueError("Time cannot go back: the duration must not be negative.")
        return given
    if not DURATION.fullmatch(given):
        raise ValueError(
            f"Invalid duration {given!r}: it must be whole numbers with units (s, m, h, d), such as 1h30m."
        )
    return timedelta(seconds=sum(int(number) * SECONDS[unit] for number, unit in PART.findall(given)))


def advance(engine: Engine, by: timedelta) -> None:
    """Let time pass: what is due within that duration is due now. Nothing runs in the meantime."""
    shift = f"interval '{by.total_seconds():f} s'"
    moves = [
        f"UPDATE {table} SET {', '.join(f'{column} = {column} - {shift}' for column in columns)}"  # noqa: S608 - ours
        for table, columns in COLUMNS.items()
        if columns
    ]

    def move(connection: Connection) -> None:
        connection.execute(text("; ".join(moves)))
        connection.execute(FORGET_RUNS)

    alone(engine, move)


def until_due(engine: Engine, task: UUID | str) -> timedelta | None:
    """Return the time until something of the task or its sub-tasks is due; None if nothing will be."""
    with engine.connect() as connection:
        seconds = connection.scalar(NEXT, {"task": task})
    # A microsecond later it is due by every comparison.
    return None if seconds is None else timedelta(seconds=float(seconds), microseconds=1)
