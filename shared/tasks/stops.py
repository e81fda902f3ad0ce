"""The kill switch: while a stop applies to a task, it begins no model call and no unsafe effect.

A stop is a row, so it holds in every process from its commit on, and outlives all of them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal, get_args
from uuid import UUID

from sqlalchemy import Connection, text

from shared.errors import NotFound
from shared.tasks import targets
from shared.tasks.records import Stop
from shared.tasks.targets import Target

Scope = Literal["installation", "namespace", "agent", "key"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

STOP = text(
    "INSERT INTO stops (scope, namespace, name, reason, created_by) VALUES (:scope, :namespace, :name, :reason, :who) "
    "ON CONFLICT (scope, namespace, name) DO UPDATE SET reason = COALESCE(EXCLUDED.reason, stops.reason) "
    "RETURNING scope, NULLIF(namespace, '') AS namespace, NULLIF(name, '') AS name, reason, created_at, created_by"
)
FIND = text(
    "SELECT reason, created_by FROM stops WHERE scope = :scope AND namespace = :namespace AND name = :name FOR UPDATE"
)
LIFT = text("DELETE FROM stops WHERE scope = :scope AND namespace = :namespace AND name = :name RETURNING 1")
STOPS = text(
    "SELECT scope, NULLIF(namespace, '') AS namespace, NULLIF(name, '') AS name, reason, created_at, created_by "
    "FROM stops s WHERE CAST(:namespace AS text) IS NULL OR s.namespace = :namespace "
    "ORDER BY s.scope <> 'installation', s.namespace, s.scope, s.name LIMIT :most"
)
STOP_OF = text("SELECT minion_stop_of(namespace, agent_name, key) FROM task_status WHERE task_id = :task")
WAKE = text("SELECT woken, last FROM minion_wake_stopped(:after, :most)")


def target_of(scope: str, namespace: str | None = None, name: str | None = None) -> Target:
    """Return the target of a stop.

    Raises:
        InvalidInput: the scope is unknown, or namespace and name do not fit it.
    """
    return Target.of("stop", SCOPES, scope, namespace, name)


def stop(
    connection: Connection, target: Target, *, reason: str | None = None, who: str | None = None
) -> dict[str, Any]:
    """Keep the tasks of a target from beginning model calls and unsafe effects. May be repeated.

    Args:
        who: the operator, for the record.
    """
    values = {**target.as_values(), "reason": reason, "who": who}
    return dict(connection.execute(STOP, values).mappings().one())


def find(connection: Connection, target: Target) -> dict[str, Any] | None:
    """Return what a change of a stop replaces, and keep others from changing it; None if there is no such stop."""
    row = connection.execute(FIND, target.as_values()).mappings().one_or_none()
    return None if row is None else dict(row)


def lift(connection: Connection, target: Target) -> None:
    """Lift a stop. The first of its tasks continue at once; the orchestrator wakes the others, in batches.

    Raises:
        NotFound: there is no such stop.
    """
    if connection.scalar(LIFT, target.as_values()) is None:
        raise NotFound(
            f"There is no stop of {target}. `minion stops` lists the stops; a pause is undone by `minion resume SCOPE "
            "NAME`."
        )
    wake(connection)


def list_stops(
    connection: Connection, *, namespace: str | None = None, most: int | None = None
) -> list[dict[str, Any]]:
    """Return the stops of a namespace, or all, that of the installation first; the first ones, if `most` is given."""
    return [dict(row) for row in connection.execute(STOPS, {"namespace": namespace, "most": most}).mappings()]


def stop_of(connection: Connection, task: UUID) -> Stop | None:
    """Return the widest stop that applies to a task."""
    found: Stop | None = connection.scalar(STOP_OF, {"task": task})
    return found


def wake(connection: Connection, *, after: UUID | None = None, limit: int = 1000) -> tuple[int, UUID | None]:
    """Wake stopped tasks to which no stop applies any more.

    Args:
        after: the task where the last pass ended; None starts with the first ones.
        limit: the number of stopped tasks to check.

    Returns:
        the number of woken tasks, and where the pass ended; None if there are no more.
    """
    row = connection.execute(WAKE, {"after": after, "most": limit}).one()
    return row.woken, row.last


def describe(found: Stop) -> str:
    """Describe a stop in one sentence: what is stopped, and by whom, when and why."""
    who = found["created_by"] or "an operator"
    because = f" ({found['reason']})" if found["reason"] else ""
    what = targets.describe(found["scope"], found["namespace"], found["name"])
    since = datetime.fromisoformat(found["created_at"]).astimezone(UTC).isoformat(timespec="seconds")
    return f"{who} stopped {what} at {since}{because}."


def how_to_lift(found: Stop) -> str:
    """Return the command that lifts a stop."""
    return f"minion resume{targets.as_options(found['scope'], found['namespace'], found['name'])}"
