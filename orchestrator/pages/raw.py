"""Whole payloads as plain text: a page shows their beginning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Response

from orchestrator.api.task_ids import TaskId
from orchestrator.api.task_models import Step, Task
from orchestrator.pages.access import Reading
from orchestrator.pages.formats import as_text
from orchestrator.pages.rendering import Page, raw
from shared.errors import NotFound
from shared.tasks import queries

router = APIRouter(route_class=Page, include_in_schema=False)


@router.get("/tasks/{task_id}/raw/{what}")
def show_of_task(
    task_id: TaskId, what: Literal["input", "messages", "output", "error", "labels"], database: Reading
) -> Response:
    """A payload of a task."""
    with database.connect() as connection:
        task = queries.get_task(connection, task_id)
    return _raw(Task.model_validate(task).model_dump()[what], f"Task {task_id} has no {what}.")


@router.get("/tasks/{task_id}/steps/{number}/raw/{what}")
def show_of_step(
    task_id: TaskId,
    number: Annotated[int, Path(ge=1, le=2**31 - 1)],
    what: Literal["input", "output", "error", "stdout"],
    database: Reading,
) -> Response:
    """A payload of a step."""
    with database.connect() as connection:
        step = queries.get_step(connection, task_id, number)
    return _raw(Step.model_validate(step).model_dump()[what], f"Step {number} of task {task_id} has no {what}.")


def _raw(value: Any, missing: str) -> Response:
    if value is None:
        raise NotFound(missing)
    return raw(as_text(value))
