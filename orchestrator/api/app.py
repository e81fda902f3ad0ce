"""The HTTP application: `uvicorn` serves what `create_app` returns.

Endpoints are plain functions in a thread pool on synchronous SQLAlchemy; only waiting is asynchronous.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import Any

from fastapi import Depends, FastAPI
from sqlalchemy import Engine, event
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.api import (
    access,
    agents,
    alerts,
    audit,
    bulk_acts,
    capabilities,
    contracts,
    costs,
    documentation,
    erasures,
    errors,
    evaluations,
    events,
    examples,
    files,
    functions,
    health,
    keys,
    mcp_servers,
    memories,
    metrics,
    names,
    problems,
    replays,
    rights,
    routes,
    rules,
    schedules,
    sessions,
    standing_budgets,
    stats,
    stops,
    tasks,
    tools,
    trials,
    waits,
    webhooks,
    workers,
)
from orchestrator.api.auth import administrator, authorize, read_key, read_metrics_token
from orchestrator.api.base_path import BasePath
from orchestrator.api.body import BodyMemory
from orchestrator.api.event_watch import EventWatch
from orchestrator.api.finish_watch import FinishWatch
from orchestrator.api.flushing import flushing
from orchestrator.api.key_addresses import KeyAddresses
from orchestrator.api.key_cache import KeyCache
from orchestrator.api.login import account, form, link, oidc
from orchestrator.api.login.attempts import Attempts
from orchestrator.api.login.cookies import Cookies
from orchestrator.api.login.mapping import RoleMapping
from orchestrator.api.login.provider import Provider
from orchestrator.api.publisher import Publisher
from orchestrator.api.quotas import QuotaHeaders, Quotas
from orchestrator.api.refusals import Refusals
from orchestrator.api.watching import Watching
from shared import __version__
from shared.access.keys import find as find_key
from shared.access.sessions import find as find_login
from shared.database.connections import autocommit, make_engine
from shared.settings import Settings
from shared.tasks.submission import KnownTargets

DESCRIPTION = """
Submit tasks for agents, inspect them, wait for them, cancel and replay them.

Errors are problem details (RFC 9457): `detail` says what was wrong and what to do, `code` is for programs.
Lists are paged: pass `next` as `cursor` to get the next page. Request bodies are strict JSON: no NaN, no U+0000,
no duplicate keys, at most 100 levels.
"""
GUARDED = (
    tasks,
    waits,
    events,
    replays,
    trials,
    bulk_acts,
    erasures,
    evaluations,
    files,
    rules,
    stops,
    standing_budgets,
    memories,
    schedules,
    webhooks,
    agents,
    contracts,
    routes,
    functions,
    tools,
    mcp_servers,
    capabilities,
    costs,
    workers,
    keys,
    access,
    sessions,
    audit,
    metrics,
    stats,
    alerts,
    errors,
)
"""The modules whose routes need an API key: `orchestrator.api.rights` has what it must be allowed to do."""
LOGIN = (form, account, oidc, link)
"""The modules of the pages about logins, which need no key."""
POOL_SIZE = 10
STATEMENT_TIMEOUT = "30s"


def create_app(settings: Settings) -> FastAPI:
    """Create the application for these settings. Its lifespan holds the connections.

    `release(app)` ends all waiting requests. Call it when the server begins to shut down; otherwise that takes as long
    as the longest wait.

    Raises:
        NotConfigured: the settings lack a database, broker or API key.
        RuntimeError: an endpoint has no rule in `orchestrator.api.rights`.
    """
    app = FastAPI(
        title="Minions",
        version=__version__,
        description=DESCRIPTION,
        lifespan=_lifespan,
        redirect_slashes=False,
        servers=[{"url": settings.base_path}] if settings.base_path else None,
        docs_url=None,  # `documentation` serves them, without a CDN
        redoc_url=None,
        generate_unique_id_function=names.operation_id,
    )
    settings.require_redis_url()
    app.state.settings = settings
    app.state.api_key = read_key(settings)
    app.state.administrator = administrator(app.state.api_key)
    app.state.metrics_token = read_metrics_token(settings)
    app.state.metrics_pages = metrics.MetricsPages()
    app.state.body_memory = BodyMemory(settings.api_memory_bytes)
    app.state.engine = limited_engine(settings, POOL_SIZE, STATEMENT_TIMEOUT)
    app.state.statements = autocommit(app.state.engine)
    app.state.known_targets = KnownTargets()
    app.state.publisher = Publisher(settings)
    app.state.keys = KeyCache(app.state.statements, find_key)
    find_own = partial(find_login, administrator=app.state.administrator)
    app.state.logins = KeyCache(app.state.statements, partial(find_own, use=True))
    app.state.watching_logins = KeyCache(app.state.statements, partial(find_own, use=False))
    app.state.cookies = Cookies.of(settings)
    app.state.quotas = Quotas()
    app.state.key_addresses = KeyAddresses(app.state.statements)
    app.state.refusals = Refusals(app.state.engine)
    app.state.watching = Watching(settings)
    app.state.finish_watch = FinishWatch(app.state.watching)
    app.state.event_watch = EventWatch(app.state.watching)
    app.state.watches = [app.state.finish_watch, app.state.event_watch]
    app.state.attempts = Attempts()
    app.state.provider = Provider(settings) if settings.oidc_issuer or settings.oidc_client_id else None
    app.state.role_mapping = RoleMapping(settings) if app.state.provider else None
    documentation.mount(app)
    for module in (health, *LOGIN):
        app.include_router(module.router)
    open_to_all = (documentation, health, *LOGIN)
    app.state.routes = [route for module in (*open_to_all, *GUARDED) for route in module.router.routes]
    guard(app)
    app.add_middleware(HeadAsGet)
    app.add_middleware(QuotaHeaders)
    app.add_middleware(NotStored)
    app.add_middleware(BasePath, base=settings.base_path)  # the outermost one
    problems.handle(app)
    app.openapi = _complete(app.openapi)  # type: ignore[method-assign]
    return app


def release(app: FastAPI) -> None:
    """End all requests that wait for something or follow it, now and from now on. May be called from any thread."""
    for watch in app.state.watches:
        watch.release()


def guard(app: FastAPI) -> None:
    """Add the routes that need an API key.

    Raises:
        RuntimeError: one of them has no rule, or a rule has no route.
    """
    routes = [route for module in GUARDED for route in module.router.routes]
    endpoints = (f"{method} {route.path_format}" for route in routes for method in route.methods)
    rights.check_complete(endpoints, rights.RULES)
    described = problems.documented(401, 403, 422, 429, 503)
    for module in GUARDED:
        app.include_router(module.router, dependencies=[Depends(authorize)], responses=described)


class NotStored:
    """Middleware that keeps caches from storing answers to a cookie: a shared cache would show them to others."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        guarded = scope["type"] == "http" and scope["path"].startswith("/v1/")
        if not guarded or all(name != b"cookie" for name, _ in scope["headers"]):
            await self.app(scope, receive, send)
            return

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault("Cache-Control", "no-store")
            await send(message)

        await self.app(scope, receive, send_marked)


class HeadAsGet:
    """Middleware that answers HEAD like GET, without a body. A stream must not begin, because it may last long."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET", "asked_for_head": True}
        await self.app(scope, receive, send)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state = app.state
    # A separate thread: requests must not wait for it.
    with flushing(state.refusals, state.key_addresses), state.publisher.running():
        async with (
            state.watching.running(),
            state.keys.following(state.watching),
            state.logins.following(state.watching),
            state.watching_logins.following(state.watching),
            state.finish_watch.running(),
            state.event_watch.running(),
        ):
            yield
    app.state.engine.dispose()


def limited_engine(settings: Settings, pool_size: int, statement_timeout: str, *more: str) -> Engine:
    """Create a separate engine for readers, none of which may hold a connection for long.

    Args:
        more: other statements that prepare a connection.
    """
    engine = make_engine(settings, pool_size=pool_size)

    @event.listens_for(engine, "connect")
    def _limit(connection: Any, record: Any) -> None:
        for statement in (f"SET statement_timeout = '{statement_timeout}'", *more):
            connection.execute(statement)
        connection.commit()

    return engine


def _complete(openapi: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """Add to the document what the framework does not know: problems, names, permissions and examples."""
    return cache(lambda: examples.add_to(rights.add_to(names.name_schemas(problems.add_schema(openapi())))))
