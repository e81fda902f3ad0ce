"""The comparison of two tasks that `minion diff` makes, from rows of the database instead of answers of the API."""

from __future__ import annotations

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
"""Longer journals are compared by `minion diff`."""


def comparison_of(connection: Connection, a: UUID, b: UUID, scope: Scope) -> Comparison:
    """Return the differences between two tasks, with masked payloads where the reader may not see them.

    Sub-tasks outside the scope are compared by their hash alone.
    """
    return compare(_record(connection, a, scope), _record(connection, b, scope))


def _record(connection: Connection, task: UUID, scope: Scope) -> Record:
    found = Task.model_validate(queries.get_task(connection, task)).model_dump(mode="json")
    steps = [
        Step.model_validate(step).model_dump(mode="json")
        for step in queries.list_steps(connection, task, limit=MOST_STEPS).items
    ]
    executions = [
        Execution.model_validate(each).model_dump(mode="json")
        for each in queries.list_executions(connection, task, limit=MOST_STEPS).items
    ]
    below = [UUID(step["child_id"]) for step in steps if step["child_id"] and not step["copied_from"]]
    outcomes = {str(child): _outcome(connection, child) for child in below if is_reached(connection, child, scope)}
    return Record(ClientTask.of(found), steps, executions, outcomes)


def _outcome(connection: Connection, task: UUID) -> dict[str, Any]:
    found = Task.model_validate(queries.get_task(connection, task)).model_dump(mode="json")
    return {"output": found["output"], "error": found["error"]}
