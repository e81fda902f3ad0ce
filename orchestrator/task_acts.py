"""Acts on one task, each with its row in the audit log, in the caller's transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from orchestrator.replay import replay as submit_again
from shared.access.actors import Actor
from shared.access.scope import Scope, own_name
from shared.audit import log
from shared.errors import Conflict, InvalidInput
from shared.tasks import lifecycle, queries
from shared.tasks.lifecycle import Accepted
from shared.tasks.records import NewTask

MOST_LABEL_BYTES = 65_536
"""Of all labels of a task, as of a new one."""

STATE = text("SELECT state FROM task_status WHERE task_id = :task")
LABEL = text(
    "UPDATE tasks SET labels = (labels || CAST(:set AS jsonb)) - CAST(:remove AS text[]) WHERE id = :task "
    "RETURNING octet_length(labels::text)"
)


def cancel(
    connection: Connection, task: UUID, actor: Actor, *, reason: str, how: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Cancel a task and everything below it, and return it.

    Args:
        how: other facts for the audit log.

    Raises:
        NotFound: there is no such task.
    """
    before = state_of(connection, task)
    lifecycle.cancel(connection, task, reason=reason, who=str(actor))
    found = queries.get_task(connection, task)
    after = {"state": found["state"], "cancel_requested": found["cancel_requested"], **(how or {})}
    log.record(connection, actor, "task.cancel", task, namespace=found["namespace"], before=before, after=after)
    return found


def replay(
    connection: Connection,
    task: UUID,
    actor: Actor,
    *,
    pinned: bool,
    new_keys: bool,
    more: NewTask | None = None,
    how: Mapping[str, Any] | None = None,
) -> Accepted:
    """Submit an ended task again, from its beginning.

    Args:
        more: other fields of the new task.
        how: other facts for the audit log.

    Raises:
        NotFound: there is no such task.
        Conflict: it has not ended yet, or its conversation is out of the actor's reach.
        MinionError: the agent no longer accepts the input.
    """
    found = queries.get_task(connection, task)
    check_conversation(connection, found, actor.key.scope)
    new = submit_again(
        connection, task, pinned=pinned, new_keys=new_keys, submitted_by=str(actor),
        submitter_key=actor.key.identity, more=more,
    )  # fmt: skip
    after = {"replayed_as": new.task_id, "from_step": None, "pinned": pinned, "new_keys": new_keys, **(how or {})}
    log.record(connection, actor, "task.replay", task, namespace=found["namespace"], after=after)
    return new


def label(
    connection: Connection,
    task: UUID,
    actor: Actor,
    *,
    labels: Mapping[str, str | None],
    how: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Set labels of a task, and return it.

    Args:
        labels: values by name; None removes a label.
        how: other facts for the audit log.

    Raises:
        NotFound: there is no such task.
        InvalidInput: it would have too many labels.
    """
    given = {name: value for name, value in labels.items() if value is not None}
    removed = [name for name, value in labels.items() if value is None]
    found = queries.get_task(connection, task)
    size = connection.scalar(LABEL, {"set": json.dumps(given), "remove": removed, "task": task})
    if size is not None and size > MOST_LABEL_BYTES:
        raise InvalidInput(f"Task {task} would have more than 64 KB of labels. Remove some.")
    # Values may be private.
    after = {"set": sorted(given), "removed": removed, **(how or {})}
    log.record(connection, actor, "task.label", task, namespace=found["namespace"], after=after)
    return queries.get_task(connection, task)


def state_of(connection: Connection, task: UUID) -> dict[str, Any] | None:
    """Return the state of a task, as the audit log has it."""
    row = connection.execute(STATE, {"task": task}).mappings().one_or_none()
    return None if row is None else dict(row)


def check_conversation(connection: Connection, task: Mapping[str, Any], scope: Scope) -> None:
    """Refuse to submit or replay a task whose conversation has tasks out of reach: it would read their messages.

    Args:
        task: its `namespace` and `conversation_id`.

    Raises:
        Conflict: it has.
    """
    conversation = task["conversation_id"]
    if conversation is None or not scope.is_partial:
        return
    if not queries.is_conversation_within(connection, task["namespace"], conversation, queries.reached(scope)):
        shown = own_name(conversation) if scope.tenant else conversation
        raise Conflict(
            f"The conversation {shown!r} has tasks that this API key does not reach, so it must not add one to it."
        )
