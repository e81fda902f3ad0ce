"""Opening a login, for each way to log in."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import structlog
from fastapi import Request, Response
from sqlalchemy import Connection, Engine
from starlette.concurrency import run_in_threadpool

from orchestrator.api import auth
from orchestrator.api.addresses import address_of
from orchestrator.api.login import cookies
from shared.access import sessions
from shared.access.actors import Actor, Key
from shared.access.scope import Scope
from shared.access.sessions import Browser, Opener
from shared.audit import log as audit
from shared.errors import NotFound
from shared.notifications import publish_keys_changed
from shared.settings import Settings

log = structlog.get_logger(__name__)


def check_configured(request: Request) -> None:
    """Raise NotFound if browsers cannot log in to this installation."""
    if request.app.state.cookies.origin is None:
        raise NotFound(
            "Browsers cannot log in here, because the address that they use is not configured: set MINION_PUBLIC_URL "
            "for the orchestrator, like https://minions.example.com. API keys work."
        )


def count_attempt(request: Request) -> None:
    """Raise TooManyRequests if this address must wait before its next attempt."""
    request.app.state.attempts.count(address_of(request))


async def open_login(
    request: Request, response: Response, opener: Opener, seconds: float, cookie: str | None = None
) -> None:
    """Open a login with a new cookie, and end the one that the browser had.

    Args:
        seconds: when it ends, however much it is used.
        cookie: the text of its cookie, if that is not just random.

    Raises:
        IntegrityError: the cookie was used before. Nothing has changed.
        SQLAlchemyError: the database is unavailable. Nothing has changed.
    """
    state = request.app.state
    settings: Settings = state.settings
    previous = (await auth.login_of(request)).key
    token = cookie or sessions.new_token()
    idle = min(seconds, settings.login_idle_seconds)

    def store(database: Engine) -> Key:
        with database.begin() as connection:
            if previous is not None:
                end_login(connection, request, previous)
            browser = Browser(address=address_of(request), user_agent=request.headers.get("user-agent", ""))
            key = sessions.open_login(
                connection,
                token,
                opener,
                state.administrator,
                browser,
                lifetime=timedelta(seconds=seconds),
                idle=timedelta(seconds=idle),
            )
            after = {"session": key.login, "kind": opener.kind, "role": key.role, "seconds": seconds}
            if key.subject is not None:
                after["subject"] = key.subject
            audit.record(
                connection, _actor(request, key), "login.begin", opener.user, namespace=key.scope.namespace, after=after
            )
            return key

    opened = await run_in_threadpool(store, state.engine)
    if previous is not None:
        # Here at once; elsewhere with the notification.
        state.logins.forget()
        state.watching_logins.forget()
        await run_in_threadpool(publish_keys_changed)
    own: cookies.Cookies = state.cookies
    own.set(response, cookies.SESSION, token, seconds)
    own.clear(response, cookies.FORM)
    log.info("login_opened", user=opener.user, login=str(opened.login), address=address_of(request))


def end_login(connection: Connection, request: Request, key: Key) -> None:
    """End the login that a request came through, as its user wishes."""
    assert key.login is not None
    ended = sessions.end(connection, Scope(), key.login, key.record)
    audit.record(
        connection,
        _actor(request, key),
        "login.end",
        ended["user"],
        namespace=key.scope.namespace,
        after={"session": key.login},
    )


def _actor(request: Request, key: Key) -> Actor:
    return Actor(key, address=address_of(request), request_id=str(uuid4()))
