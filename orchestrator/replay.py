"""Replay of ended tasks: new tasks with the same input, linked to the original ones, which stay unchanged.

Bulk replays are spread over time: each new task is scheduled for its own time, so that the rate holds whatever happens
to this process, and live work is not delayed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, text

from shared.errors import Conflict, MinionError
from shared.tasks import lifecycle
from shared.tasks.lifecycle import Accepted
from shared.tasks.queries import TaskFilter, get_task, list_tasks
from shared.tasks.records import NewTask
from shared.tasks.states import FINAL

CARRIED: Final = ("namespace", "capability", "conversation_id", "key", "labels", "priority")
ASKED_FOR = text("SELECT capability FROM tasks WHERE id = :task")


def replay(
    connection: Connection,
    task_id: UUID,
    *,
    pinned: bool,
    submitted_by: str,
    new_keys: bool = False,
    submitter_key: str | None = None,
    more: NewTask | None = None,
) -> Accepted:
    """Submit an ended task again.

    Args:
        pinned: run the agent version of the original, not the active one.
        new_keys: use new idempotency keys for its calls, and those of all tasks below it.
        submitter_key: the id of the API key that replays it, or `bootstrap`.
        more: other fields of the new task.

    Raises:
        NotFound: there is no such task.
        Conflict: it has not ended yet.
        MinionError: the agent no longer accepts the input.
    """
    task = get_ended(connection, task_id)
    new = new_task(task, pinned, submitted_by, new_keys=new_keys, submitter_key=submitter_key)
    [accepted] = lifecycle.accept(connection, [{**new, **(more or {})}])
    return accepted


def get_ended(connection: Connection, task_id: UUID) -> dict[str, Any]:
    """Return a task that can be replayed.

    Raises:
        NotFound: there is no such task.
        Conflict: it has not ended yet.
    """
    task = get_task(connection, task_id)
    # The requested queue, not the one chosen by the agent's version of that time.
    task["capability"] = connection.scalar(ASKED_FOR, {"task": task_id})
    if task["state"] not in FINAL:
        raise Conflict(f"Task {task_id} is {task['state']}; only a task that has ended can be replayed.")
    return task


@dataclass(frozen=True, slots=True)
class Replayed:
    """One task of a bulk replay: its replay, or the reason why there is none."""

    task_id: UUID
    replayed_as: UUID | None
    error: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ReplayedPage:
    """One page of a bulk replay. `next` is the cursor of the next page, `start_at` the start time of its first task."""

    items: list[Replayed]
    next: str | None
    start_at: datetime


def replay_many(
    connection: Connection,
    chosen: TaskFilter,
    *,
    batch: UUID,
    pinned: bool,
    new_keys: bool,
    rate: float,
    start_at: datetime | None,
    limit: int,
    before: UUID | None,
    submitted_by: str,
    submitter_key: str,
    check: Callable[[dict[str, Any]], None],
    dry_run: bool = False,
) -> ReplayedPage:
    """Submit a page of ended tasks again, the newest first. A refused task does not stop the others.

    Args:
        chosen: filter; tasks that have not ended are left out.
        batch: the same for all pages of one replay: a page that is requested twice creates no task twice.
        new_keys: use new idempotency keys for their calls, and those of all tasks below them.
        rate: number of new tasks that may start per second.
        start_at: start time of the page's first task; None: now.
        limit: maximum number of tasks.
        before: the `next` of the previous page.
        check: raises a MinionError if a task of the page must not be replayed.
        dry_run: only report the tasks.
    """
    page = list_tasks(connection, chosen, limit=limit, before=before)
    moment = max(start_at or datetime.now(UTC), datetime.now(UTC))
    items = []
    for row in page.items:
        if row["state"] not in FINAL:
            continue
        if dry_run:
            items.append(Replayed(row["id"], None))
            continue
        done = _try_one(
            connection,
            row,
            check,
            pinned=pinned,
            new_keys=new_keys,
            submitted_by=submitted_by,
            submitter_key=submitter_key,
            more={"idempotency_key": f"replay:{batch}:{row['id']}", "run_at": moment.isoformat()},
        )
        moment += timedelta(seconds=1 / rate) if done.replayed_as else timedelta(0)
        items.append(done)
    return ReplayedPage(items, page.next, moment)


def _try_one(
    connection: Connection, task: dict[str, Any], check: Callable[[dict[str, Any]], None], **how: Any
) -> Replayed:
    try:
        check(task)
        with connection.begin_nested():
            return Replayed(task["id"], replay(connection, task["id"], **how).task_id)
    except MinionError as error:
        return Replayed(task["id"], None, error.as_dict())


def new_task(
    task: dict[str, Any], pinned: bool, submitted_by: str, *, new_keys: bool, submitter_key: str | None
) -> NewTask:
    """Return the task that replays another one."""
    new: NewTask = {"replay_of": str(task["id"]), "submitted_by": submitted_by, "new_keys": new_keys}
    if submitter_key is not None:
        new["submitter_key"] = submitter_key
    for name in CARRIED:
        if task[name] is not None:
            new[name] = task[name]
    if task["messages"] is not None:
        new["messages"] = task["messages"]
    else:
        new["input"] = task["input"]
    if pinned and task["agent_version_id"] is not None:
        new["agent_version_id"] = str(task["agent_version_id"])
    elif task["agent"] is not None:
        new["agent"] = task["agent"]
    return new
