"""Workers: their slots, heartbeats and memory, and the tasks that run on each."""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import UUID as PgUUID

from orchestrator.api import workers as api
from orchestrator.api.parameters import StrictQuery
from orchestrator.api.workers import WorkerPageQuery
from orchestrator.pages.access import Reading
from orchestrator.pages.bounds import fitting
from orchestrator.pages.rendering import Page, render

ROWS = 50
MOST_RUNNING = 10
"""Tasks that are shown of one worker."""
MOST_CAPABILITIES = 20
RUNNING = text(
    """
    SELECT r.* FROM unnest(:workers) AS w (id) CROSS JOIN LATERAL (
        SELECT s.worker_id, s.task_id, s.agent_name AS agent, e.started_at
            FROM task_status s LEFT JOIN executions e ON e.task_id = s.task_id AND e.claim = s.claim
            WHERE s.worker_id = w.id AND s.state = 'running' LIMIT :most) r
    """
).bindparams(bindparam("workers", type_=ARRAY(PgUUID)), bindparam("most", MOST_RUNNING))

router = APIRouter(route_class=Page, include_in_schema=False)


class ListQuery(StrictQuery):
    """Which workers, and the page."""

    status: Literal["online", "stopped", "lost", "all"] = "online"
    cursor: UUID | None = None


@router.get("/workers")
def show_workers(query: Annotated[ListQuery, Query()], request: Request, database: Reading) -> Response:
    """The workers, the latest started first."""
    status = None if query.status == "all" else query.status
    page = api.list_workers(WorkerPageQuery(status=status, cursor=query.cursor, limit=ROWS), request, database)
    with database.connect() as connection:
        running = _running(connection, [worker["id"] for worker in page.items])
    shown = fitting(page.items, lambda worker: _names(worker, running), ROWS)
    return render(
        request,
        "workers.html",
        workers=shown,
        most_capabilities=MOST_CAPABILITIES,
        running=running,
        chosen=query.status,
        next=page.next if len(shown) == len(page.items) else shown[-1]["id"],
        flower=request.app.state.settings.flower_url,
        live="/workers/live" if query.cursor is None else None,
    )


def _names(worker: dict[str, Any], running: dict[UUID, list[Any]]) -> list[str]:
    """Return the names that a row shows."""
    agents = [task["agent"] for task in running.get(worker["id"], ())]
    return [worker["name"], worker["host"], worker["version"], *worker["capabilities"][:MOST_CAPABILITIES], *agents]


def _running(connection: Connection, workers: list[UUID]) -> dict[UUID, list[Any]]:
    """Return the tasks that run on each worker."""
    found = defaultdict(list)
    for row in connection.execute(RUNNING, {"workers": workers}).mappings():
        found[row["worker_id"]].append(row)
    return found
