"""Reading tasks: what is stored, as JSON-ready dictionaries."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from shared.errors import NotFound
from shared.schemas import AgentResponse, Usage

OVERVIEW = text("SELECT * FROM task_overview WHERE id = :task")
USAGE = text(
    "SELECT COALESCE(sum(input_tokens), 0), COALESCE(sum(output_tokens), 0), COALESCE(sum(cost_microdollars), 0) "
    "FROM executions WHERE task_id = :task"
)


def get_task(connection: Connection, task: UUID) -> dict[str, Any]:
    """A task's row of `task_overview`.

    Raises:
        NotFound: there is no such task.
    """
    row = connection.execute(OVERVIEW, {"task": task}).mappings().one_or_none()
    if row is None:
        raise NotFound(f"There is no task {task}.")
    return dict(row)


def response_of(connection: Connection, task: dict[str, Any]) -> AgentResponse:
    """The standard response of a finished task."""
    usage = connection.execute(USAGE, {"task": task["id"]}).one()
    return AgentResponse(
        task_id=task["id"],
        agent=task["agent"] or "",
        state=task["state"],
        content=content_of(task["output"]),
        output=task["output"],
        conversation_id=task["conversation_id"],
        usage=Usage(input_tokens=usage[0], output_tokens=usage[1], cost_microdollars=usage[2]),
        finished_at=task["finished_at"],
    )


def content_of(output: Any) -> str:
    """An output as text: the text itself, its `content` field, or its JSON."""
    import json

    if isinstance(output, str):
        return output
    if isinstance(output, dict) and isinstance(output.get("content"), str):
        return str(output["content"])
    return "" if output is None else json.dumps(output, ensure_ascii=False)
