"""Pending tasks that are not ready for a queue yet: those to be routed by message, and those that came in by SQL,
whose input nobody has checked against the agent's schema.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from shared import lifecycle
from shared.database import is_transient
from shared.errors import InvalidInput, MinionError
from shared.messages import checked_input, coerce, last_text
from shared.routing import Route, by_setting, choose
from shared.schemas import Message
from shared.settings import get_settings
from shared.states import State

log = structlog.get_logger(__name__)

MOST = 500
UNPREPARED = text(
    """
    SELECT t.id, t.namespace, t.agent_version_id, t.capability AS wanted, t.input, t.messages, v.name, v.capability,
           v.input_schema, v.type
        FROM task_status s JOIN tasks t ON t.id = s.task_id LEFT JOIN agent_versions v ON v.id = t.agent_version_id
        WHERE s.state = 'pending' AND s.capability IS NULL ORDER BY s.task_id LIMIT :most
        -- All at once and without waiting: who locks a tree takes its tasks in another order.
        FOR NO KEY UPDATE OF s SKIP LOCKED
    """
)
VERSION = text("SELECT name, capability, input_schema, type FROM agent_versions WHERE id = :version")


def prepare_pending(engine: Engine) -> None:
    """Routes and checks tasks; those that cannot run fail with the reason.

    Each of those in a transaction of its own: its parent is locked before the task, so not while other tasks are.
    One that is not reached is found again.
    """
    with engine.begin() as connection:
        rejected = release_checked(connection)
    for task, error in rejected:
        with engine.begin() as connection:
            lifecycle.reject(connection, task, error.as_dict())


def release_checked(connection: Connection) -> list[tuple[UUID, MinionError]]:
    """Routes and checks tasks, and releases them for their queues. Returns those that cannot run, and why."""
    rejected: list[tuple[UUID, MinionError]] = []
    for row in connection.execute(UNPREPARED, {"most": MOST}).mappings().all():
        try:
            with connection.begin_nested():
                _prepare(connection, dict(row))
        except MinionError as error:
            log.info("rejected", task=str(row["id"]), error=error.code)
            rejected.append((row["id"], error))
        except Exception as error:
            if isinstance(error, DBAPIError) and is_transient(error):
                raise
            # One task that nobody foresaw must not hold up all others.
            log.exception("cannot_be_prepared", task=str(row["id"]))
            unreadable = InvalidInput("The task's input or messages cannot be read; the orchestrator's log says why.")
            rejected.append((row["id"], unreadable))
    return rejected


def _prepare(connection: Connection, task: dict[str, Any]) -> None:
    said = _said(task["messages"])
    version_id: UUID | None = task["agent_version_id"]
    decision = None
    if version_id is None:
        route = _routed(connection, task, said or [])
        version_id, decision = route.version_id, route.as_json()
        task |= connection.execute(VERSION, {"version": version_id}).mappings().one()
    # What a model reads as messages is not held to the input schema.
    if not (task["type"] == "agent" and said is not None):
        checked_input(task["input_schema"], task["input"], said, agent=task["name"])
    lifecycle.route(connection, task["id"], version_id, task["wanted"] or task["capability"], decision)


def _said(messages: Any) -> list[Message] | None:
    """The task's messages, if it has any; from SQL anything may come."""
    if messages is None:
        return None
    if not isinstance(messages, list) or not messages:
        raise InvalidInput("`messages` must be a list of at least one message.")
    return [coerce(message) for message in messages]


def _routed(connection: Connection, task: dict[str, Any], said: list[Message]) -> Route:
    """By MINION_ROUTING_AGENT, where the namespace has such an agent, else by the words of the last message."""
    name = get_settings().routing_agent
    route = by_setting(connection, name, namespace=task["namespace"]) if name else None
    route = route or choose(connection, last_text(said), namespace=task["namespace"])
    log.info("routed", task=str(task["id"]), **route.as_json(), state=State.PENDING)
    return route
