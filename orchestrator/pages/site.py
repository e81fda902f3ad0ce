"""The pages, added to the application of the API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, Depends, FastAPI, Response

from orchestrator.api import rights
from orchestrator.api.app import limited_engine
from orchestrator.api.base_path import check_base_path
from orchestrator.api.login.pages import see_other
from orchestrator.pages import (
    acts,
    agents,
    alerts,
    analytics,
    audit,
    budgets,
    bulk_acts,
    capabilities,
    errors,
    files,
    functions,
    inbox,
    keys,
    limits,
    live,
    memory,
    not_found,
    overview,
    palette,
    raw,
    rendering,
    routing,
    saved_views,
    schedules,
    secrets,
    silences,
    task_list,
    task_page,
    tools,
    try_agent,
    webhooks,
    workers,
)
from orchestrator.pages.access import authorize
from orchestrator.pages.live import Streams
from orchestrator.pages.rights import RULES
from shared.database.connections import autocommit

WORK = (overview, live, task_list, task_page, raw, inbox, acts, bulk_acts, saved_views, palette, errors)
FIGURES = (capabilities, workers, analytics)
DEFINITIONS = (agents, try_agent, routing, functions, tools)
OPERATIONS = (schedules, limits, budgets, webhooks, secrets, files, memory, keys, alerts, silences, audit)
PAGES = (*WORK, *FIGURES, *DEFINITIONS, *OPERATIONS)
"""The modules whose pages need a login. The addresses of streams come before those of tasks and errors."""
POOL_SIZE = 4
STATEMENT_TIMEOUT = "3s"
# Every query has an index. The planner prefers to read all of a table, or to merge two, where a page needs the
# beginning of an index. A plan for any time range and any filters takes three times as long for statistics as one for
# those that are asked for.
PLANNING = (
    "SET enable_seqscan = off",
    "SET enable_mergejoin = off",
    "SET jit = off",
    "SET plan_cache_mode = force_custom_plan",
)
HOME = "/overview"

home = APIRouter(include_in_schema=False)


@home.get("/")
async def go_home() -> Response:
    """Leads to the first page."""
    return see_other(HOME)


def add_to(app: FastAPI) -> None:
    """Add the pages. They have a few dedicated connections, and a short limit for each statement.

    Raises:
        RuntimeError: a page has no rule in `orchestrator.pages.rights`, or a rule has no page.
        NotConfigured: the base path is the beginning of an address.
    """
    state = app.state
    state.pages_engine = autocommit(limited_engine(state.settings, POOL_SIZE, STATEMENT_TIMEOUT, *PLANNING))
    state.streams = Streams(state.watching)
    state.watches.append(state.streams)
    routes = [route for module in PAGES for route in module.router.routes]
    pages = (f"{method} {route.path}" for route in routes for method in route.methods)
    rights.check_complete(pages, RULES, "orchestrator.pages.rights")
    # In place of the start page of the API.
    app.router.routes[:0] = home.routes
    app.include_router(rendering.router)
    for module in PAGES:
        app.include_router(module.router, dependencies=[Depends(authorize)])
    state.routes += [*home.routes, *rendering.router.routes, *routes]
    check_base_path(state.settings.base_path, state.routes)
    not_found.handle(app)
    _live_with(app)


def _live_with(app: FastAPI) -> None:
    """Run what the pages need while the application runs."""
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(running: FastAPI) -> AsyncIterator[None]:
        async with inner(running), running.state.streams.running():
            yield
        running.state.pages_engine.dispose()

    app.router.lifespan_context = lifespan
