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
from orchestrator.pages.bulk_acts import permitted_acts
from orchestrator.pages.palette import agents_of
from orchestrator.pages.rendering import Page, render
from orchestrator.pages.saved_views import DONE, may_share, views_of
from shared.access.actors import Key
from shared.contracts.strict_model import faults_of
from shared.errors import InvalidInput, MinionError
from shared.tasks import queries
from shared.tasks.states import State
from shared.tasks.task_query import TERMS, task_id_in, written_query

ROWS = 50
MOST_COUNTED = 10_000
MOST_NAMES = 200
"""Agents that complete a query."""

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
    beside = await run_in_threadpool(_beside, database, key)
    return render(
        request,
        "tasks.html",
        status,
        query=query.q,
        states=list(State),
        terms=list(TERMS),
        acts=permitted_acts(key) if query.q.strip() else [],
        is_first=query.cursor is None,
        live="/tasks/live" if status == 200 and query.cursor is None else None,
        most_counted=MOST_COUNTED,
        done=DONE.get(query.done),
        **beside,
        **{"problem": None, "next": None, "searched": None, "count": None, "usages": {}, **shown},
    )


def _beside(database: Reading, key: Key) -> dict[str, Any]:
    """Return the saved views, and what completes a query."""
    agents = agents_of(database, key, MOST_NAMES)
    capabilities = sorted({name for agent in agents for name in agent["capabilities"]})
    terms = [{"agent": agent["name"]} for agent in agents] + [{"capability": name} for name in capabilities]
    with database.connect() as connection:
        views = views_of(connection, key)
    return {"views": views, "may_share": may_share(key), "completions": [written_query(term) for term in terms]}


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
