"""Pending tasks that are not ready for a queue yet: those to be routed by message, and those that came in by SQL,
whose input nobody has checked against the agent's schema.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Connection, text

from shared import lifecycle
from shared.errors import InvalidInput, MinionError
from shared.messages import checked_input, coerce, last_text
from shared.routing import choose
from shared.states import State

log = structlog.get_logger(__name__)

MOST = 500
UNPREPARED = text(
    """
    SELECT t.id, t.namespace, t.agent_version_id, t.capability AS wanted, t.input, t.messages, v.name, v.capability,
           v.input_schema, v.type
        FROM task_status s JOIN tasks t ON t.id = s.task_id LEFT JOIN agent_versions v ON v.id = t.agent_version_id
        WHERE s.state = 'pending' AND s.capability IS NULL ORDER BY s.task_id LIMIT :most
    """
)
VERSION = text("SELECT name, capability, input_schema, type FROM agent_versions WHERE id = :version")


def prepare_pending(connection: Connection) -> int:
    """Routes and checks tasks; those that cannot run fail with the reason. Returns how many it looked at."""
    rows = connection.execute(UNPREPARED, {"most": MOST}).mappings().all()
    for row in rows:
        try:
            with connection.begin_nested():
                _prepare(connection, dict(row))
        except MinionError as error:
            log.info("rejected", task=str(row["id"]), error=error.code)
            lifecycle.reject(connection, row["id"], error.as_dict())
    return len(rows)


def _prepare(connection: Connection, task: dict[str, Any]) -> None:
    version_id: UUID | None = task["agent_version_id"]
    if version_id is None:
        version_id = _routed(connection, task)
        task |= connection.execute(VERSION, {"version": version_id}).mappings().one()
    # What a model reads as messages is not held to the input schema.
    if not (task["type"] == "agent" and task["messages"] is not None):
        checked_input(task["input_schema"], task["input"], task["messages"], agent=task["name"])
    lifecycle.route(connection, task["id"], version_id, task["wanted"] or task["capability"])


def _routed(connection: Connection, task: dict[str, Any]) -> UUID:
    messages = task["messages"]
    if not isinstance(messages, list):
        raise InvalidInput("`messages` must be a list of messages.")
    route = choose(connection, last_text([coerce(message) for message in messages]), namespace=task["namespace"])
    log.info("routed", task=str(task["id"]), agent=route.agent, scores=route.scores, state=State.PENDING)
    return route.version_id
