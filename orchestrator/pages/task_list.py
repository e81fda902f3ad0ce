"""The list of tasks, filtered by a query."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from orchestrator.api.auth import Caller
from orchestrator.api.login.pages import see_other
from orchestrator.api.parameters import StrictQuery, Text, in_namespace
from orchestrator.api.task_filters import TaskPageQuery
from orchestrator.api.task_models import TaskSummary
from orchestrator.pages.access import Reading
from orchestrator.pages.rendering import Page, render
from shared.access.actors import Key
from shared.contracts.strict_model import faults_of
from shared.errors import InvalidInput, MinionError
from shared.tasks import queries
from shared.tasks.states import State
from shared.tasks.task_query import TERMS, task_id_in

ROWS = 50
MOST_COUNTED = 10_000

router = APIRouter(route_class=Page, include_in_schema=False)


class ListQuery(StrictQuery):
    """A query and the page."""

    q: Annotated[str, Query(max_length=1000)] = ""
    cursor: UUID | None = None
    done: Text = ""


@router.get("/tasks")
async def list_tasks(
    query: Annotated[ListQuery, Query()], request: Request, database: Reading, key: Caller
) -> Response:
    """Tasks, the newest first."""
    if (found := task_id_in(query.q)) is not None:
        return see_other(f"/tasks/{found}")
    try:
        filters = await in_namespace(TaskPageQuery)(_filters(query), key)
        shown = await run_in_threadpool(_read, filters, database, key)
    except MinionError as error:
        if error.status >= 500:
            raise
        shown, status = {"tasks": [], "problem": error.message}, error.status
    else:
        status = 200
    return render(
        request,
        "tasks.html",
        status,
        query=query.q,
        states=list(State),
        terms=list(TERMS),
        is_first=query.cursor is None,
        live="/tasks/live" if status == 200 and query.cursor is None else None,
        most_counted=MOST_COUNTED,
        **{"problem": None, "next": None, "searched": None, "count": None, "usages": {}, **shown},
    )


def _filters(query: ListQuery) -> TaskPageQuery:
    try:
        return TaskPageQuery.model_validate({"query": query.q, "limit": ROWS, "cursor": query.cursor})
    except ValidationError as error:
        raise InvalidInput(f"The query is not valid: {'; '.join(faults_of(error))}.") from None


def _read(filters: TaskPageQuery, database: Reading, key: Key) -> dict[str, Any]:
    with database.connect() as connection:
        chosen = filters.chosen(connection, key)
        page = queries.search_tasks(connection, chosen, limit=ROWS, before=filters.cursor)
        usages = queries.usages_of(connection, [task["id"] for task in page.items])
        count = queries.count_up_to(connection, chosen, MOST_COUNTED + 1)
    return {
        "tasks": [TaskSummary.model_validate(task).model_dump() for task in page.items],
        "next": page.next,
        "searched": queries.MOST_SEARCHED if page.is_cut else None,
        "count": count,
        "usages": usages,
    }
