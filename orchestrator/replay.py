"""Replaying a task that has ended: a new task with the same input, linked to the old one, which stays as it was."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from shared import lifecycle
from shared.errors import Conflict
from shared.lifecycle import Accepted
from shared.states import FINAL
from shared.tasks import get_task

CARRIED = ("namespace", "capability", "conversation_id", "key", "labels", "priority", "traceparent")
ASKED_FOR = text("SELECT capability FROM tasks WHERE id = :task")


def replay(connection: Connection, task_id: UUID, *, pinned: bool, submitted_by: str) -> Accepted:
    """Submits a finished task again.

    Args:
        pinned: run the agent version that ran then, not the one that is active now.

    Raises:
        NotFound: there is no such task.
        Conflict: it has not ended yet.
        MinionError: the agent does not accept it any more.
    """
    task = get_task(connection, task_id)
    # The queue that was asked for, not the one that the agent's version of then chose.
    task["capability"] = connection.scalar(ASKED_FOR, {"task": task_id})
    if task["state"] not in FINAL:
        raise Conflict(f"Task {task_id} is {task['state']}; only a task that has ended can be replayed.")
    return lifecycle.accept(connection, [_request(task, pinned, submitted_by)])[0]


def _request(task: dict[str, Any], pinned: bool, submitted_by: str) -> dict[str, Any]:
    request: dict[str, Any] = {name: task[name] for name in CARRIED if task[name] is not None}
    request |= {"replay_of": str(task["id"]), "submitted_by": submitted_by}
    if task["messages"] is not None:
        request["messages"] = task["messages"]
    else:
        request["input"] = task["input"]
    if pinned and task["agent_version_id"] is not None:
        request["agent_version_id"] = str(task["agent_version_id"])
    elif task["agent"] is not None:
        request["agent"] = task["agent"]
    return request
