"""The comparison of two tasks that `minion diff` makes, from rows of the database instead of answers of the API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from minions import Comparison
from minions import Task as ClientTask
from minions.comparison import Record, compare
from orchestrator.api.task_ids import is_reached
from orchestrator.api.task_models import Execution, Step, Task
from shared.access.scope import Scope
from shared.tasks import queries

MOST_STEPS = 200
"""Steps, and claims, of each task. `minion diff` compares all."""


@dataclass(frozen=True, slots=True)
class Compared:
    """The differences between two tasks.

    Attributes:
        is_cut: one of them has more steps or claims than were compared.
    """

    found: Comparison
    is_cut: bool


def comparison_of(connection: Connection, a: UUID, b: UUID, scope: Scope) -> Compared:
    """Compare two tasks, with masked payloads where the reader may not see them.

    Sub-tasks outside the scope are compared by their hash alone.
    """
    records, cuts = zip(*(_record(connection, task, scope) for task in (a, b)), strict=True)
    return Compared(compare(*records), any(cuts))


def _record(connection: Connection, task: UUID, scope: Scope) -> tuple[Record, bool]:
    """Return the beginning of a task's record, and whether there is more."""
    found = Task.model_validate(queries.get_task(connection, task)).model_dump(mode="json")
    journal = queries.list_steps(connection, task, limit=MOST_STEPS)
    claims = queries.list_executions(connection, task, limit=MOST_STEPS)
    steps = [Step.model_validate(step).model_dump(mode="json") for step in journal.items]
    executions = [Execution.model_validate(each).model_dump(mode="json") for each in claims.items]
    below = [UUID(step["child_id"]) for step in steps if step["child_id"] and not step["copied_from"]]
    outcomes = {str(child): _outcome(connection, child) for child in below if is_reached(connection, child, scope)}
    is_cut = journal.next is not None or claims.next is not None
    return Record(ClientTask.of(found), steps, executions, outcomes), is_cut


def _outcome(connection: Connection, task: UUID) -> dict[str, Any]:
    found = Task.model_validate(queries.get_task(connection, task)).model_dump(mode="json")
    return {"output": found["output"], "error": found["error"]}
