"""Preparation of pending tasks: routes those without an agent by their messages, and checks those submitted by SQL,
whose input has not been checked against the agent's schema.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from shared.contracts.requests import Message
from shared.database.connections import autocommit, is_transient
from shared.errors import InvalidInput, MinionError
from shared.settings import get_settings
from shared.tasks import lifecycle
from shared.tasks.messages import checked_input, coerce_all, last_text
from shared.tasks.routing import Route, by_setting, choose
from shared.tasks.states import State

log = structlog.get_logger(__name__)

BATCH = 500
CHECK_SECONDS = 1.0
"""Time after which checked tasks are released first: one long input with a deep schema may take as long."""

UNPREPARED = text(
    """
    SELECT t.id, t.namespace, t.agent_version_id, t.capability AS wanted, t.input, t.messages, v.name, v.capability,
           v.input_schema, v.type
        FROM task_status s JOIN tasks t ON t.id = s.task_id LEFT JOIN agent_versions v ON v.id = t.agent_version_id
        WHERE s.state = 'pending' AND s.capability IS NULL ORDER BY s.task_id LIMIT :most
    """
)
VERSION = text("SELECT name, capability, input_schema, type FROM agent_versions WHERE id = :version")
ROUTED_VERSION = text("SELECT minion_routed_version(:task, :active)")
STILL_UNPREPARED = text(
    """
    SELECT task_id FROM task_status
        WHERE task_id = ANY (:tasks) AND state = 'pending' AND capability IS NULL
        -- All at once and without waiting: who locks a tree takes its tasks in another order.
        FOR NO KEY UPDATE SKIP LOCKED
    """
)


@dataclass(frozen=True, slots=True)
class Destination:
    """The agent version and the queue of a task. `decision` is how the agent was chosen, if the task named none."""

    version_id: UUID
    queue: str
    decision: dict[str, Any] | None


@dataclass(slots=True)
class Checked:
    """Results of checking tasks, by task.

    Attributes:
        released: the destinations of those that can run.
        rejected: the errors of the others.
        more: whether there may be other tasks.
    """

    released: dict[UUID, Destination] = field(default_factory=dict)
    rejected: dict[UUID, MinionError] = field(default_factory=dict)
    more: bool = False


def prepare_pending(engine: Engine) -> bool:
    """Route and check tasks; those that cannot run fail with the reason. Return whether there may be more.

    Each failure is a separate transaction: its parent is locked before the task, so no other tasks may be locked then.
    A task that is not reached is found again.
    """
    with autocommit(engine).connect() as connection:
        checked = check_pending(connection)
    with engine.begin() as connection:
        release_checked(connection, checked)
    for task, error in checked.rejected.items():
        with engine.begin() as connection:
            lifecycle.reject(connection, task, error.as_dict())
    return checked.more


def check_pending(connection: Connection) -> Checked:
    """Route and check the oldest tasks without changing anything.

    Args:
        connection: in autocommit mode, because PostgreSQL ends a transaction that is idle during a slow check.
    """
    checked = Checked()
    enough = time.monotonic() + CHECK_SECONDS
    rows = connection.execute(UNPREPARED, {"most": BATCH}).mappings().all()
    checked.more = len(rows) == BATCH
    for row in rows:
        task = row["id"]
        try:
            checked.released[task] = _check(connection, dict(row))
        except MinionError as error:
            log.info("rejected", task=str(task), error=error.code)
            checked.rejected[task] = error
        except Exception as error:
            if isinstance(error, DBAPIError) and is_transient(error):
                raise
            # An unexpected error in one task must not block all others.
            log.exception("cannot_be_prepared", task=str(task))
            reason = "The task's input or messages cannot be read; the orchestrator's log says why."
            checked.rejected[task] = InvalidInput(reason)
        if time.monotonic() > enough:
            checked.more = True
            break
    return checked


def route_message(connection: Connection, message: str, namespace: str) -> Route:
    """Route by MINION_ROUTING_AGENT, if the namespace has such an agent, else by the words of the message.

    Raises:
        AmbiguousRoute: no agent fits, or the best ones fit equally well.
    """
    name = get_settings().routing_agent
    route = by_setting(connection, name, namespace=namespace) if name else None
    return route or choose(connection, message, namespace=namespace)


def release_checked(connection: Connection, checked: Checked) -> None:
    """Release tasks for their queues, except those that another transaction has changed or is changing."""
    for task in connection.scalars(STILL_UNPREPARED, {"tasks": list(checked.released)}).all():
        to = checked.released[task]
        lifecycle.route(connection, task, to.version_id, to.queue, to.decision)


def _check(connection: Connection, task: dict[str, Any]) -> Destination:
    said = _coerce_messages(task["messages"], tools=task["type"] != "agent")
    if task["agent_version_id"] is not None:
        _check_input(task, said)
        return Destination(task["agent_version_id"], task["wanted"] or task["capability"], None)
    route = _route(connection, task, said or [])
    drawn = connection.scalar(ROUTED_VERSION, {"task": task["id"], "active": route.version_id})
    try:
        return _routed(connection, task, said, route, drawn)
    except InvalidInput:
        # A canary gets no task that only the active version accepts.
        return _routed(connection, task, said, route, route.version_id)


def _routed(
    connection: Connection, task: dict[str, Any], said: list[Message] | None, route: Route, version_id: UUID
) -> Destination:
    task = {**task, **connection.execute(VERSION, {"version": version_id}).mappings().one()}
    _check_input(task, said)
    return Destination(version_id, task["wanted"] or task["capability"], route.as_json())


def _check_input(task: dict[str, Any], said: list[Message] | None) -> None:
    # Messages for a model are not checked against the input schema.
    if not (task["type"] == "agent" and said is not None):
        checked_input(task["input_schema"], task["input"], said, agent=task["name"])


def _coerce_messages(messages: Any, *, tools: bool) -> list[Message] | None:
    """Return the task's messages, if any. Those from SQL may have any form."""
    if messages is None:
        return None
    if not isinstance(messages, list) or not messages:
        raise InvalidInput("`messages` must be a list of at least one message.")
    return coerce_all(messages, tools=tools)


def _route(connection: Connection, task: dict[str, Any], said: list[Message]) -> Route:
    route = route_message(connection, last_text(said), task["namespace"])
    log.info("routed", task=str(task["id"]), **route.as_json(), state=State.PENDING)
    return route
