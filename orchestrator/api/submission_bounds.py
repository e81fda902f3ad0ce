"""Submissions with a bound key: they join nothing, and learn of nothing, that is out of the key's reach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import Connection, Engine

from orchestrator.api import agents
from orchestrator.api.task_ids import is_reached
from orchestrator.task_acts import check_conversation
from shared.access.scope import Scope
from shared.contracts.requests import TaskRequest
from shared.database.connections import autocommit
from shared.errors import Conflict, IdempotencyConflict, MinionError, UnknownAgent, UnknownCapability
from shared.tasks import submission
from shared.tasks.lifecycle import Accepted


@contextmanager
def kept(database: Engine, requests: Sequence[TaskRequest], scope: Scope) -> Iterator[None]:
    """Refuse to join conversations out of reach, and name no foreign agent or task if the block refuses.

    Raises:
        Conflict: a conversation has tasks out of reach, or a task out of reach has the idempotency key of a request.
        UnknownAgent: a request names an agent that is out of reach.
    """
    if not scope.is_partial:
        yield
        return
    with autocommit(database).connect() as connection:
        _check_conversations(connection, requests, scope)
    try:
        yield
    except (UnknownAgent, UnknownCapability, Conflict) as error:
        with autocommit(database).connect() as connection:
            _conceal(connection, error, requests, scope)
        raise


def check_earlier(connection: Connection, accepted: Sequence[Accepted], scope: Scope) -> None:
    """Refuse to name an earlier task that has the idempotency key or unique key of a request, but is out of reach."""
    if not all(task.created or is_reached(connection, task.task_id, scope) for task in accepted):
        raise _taken()


def _check_conversations(connection: Connection, requests: Sequence[TaskRequest], scope: Scope) -> None:
    # A tenant's conversations are its own: their stored names contain the tenant key.
    if not scope.agents and not scope.capabilities:
        return
    for request in {(each.namespace, each.conversation_id): each for each in requests}.values():
        check_conversation(connection, request.model_dump(include={"namespace", "conversation_id"}), scope)


def _conceal(connection: Connection, error: MinionError, requests: Sequence[TaskRequest], scope: Scope) -> None:
    """Raise another error in place of one that names a task or an agent out of reach."""
    if isinstance(error, IdempotencyConflict):
        earlier = submission.keys_in_use(connection, requests).values()
        if not all(is_reached(connection, task, scope) for task in earlier):
            raise _taken() from None
        return
    refused = error.detail.get("index")
    for index, request in enumerate(requests):
        if refused in (None, index) and not _names_reached_agent(connection, request, scope):
            unknown = UnknownAgent(f"There is no agent named {request.agent!r}. `minion agents` lists them.")
            raise submission.refusal(unknown, index, len(requests)) from None


def _names_reached_agent(connection: Connection, request: TaskRequest, scope: Scope) -> bool:
    return request.agent is None or agents.is_reached(connection, scope, request.namespace, request.agent)


def _taken() -> Conflict:
    return Conflict(
        "A task that this API key does not reach has the same idempotency key or unique key. Choose another."
    )
