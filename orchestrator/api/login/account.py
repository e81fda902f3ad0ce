"""The page of a login, which shows its user and its permissions, and logging out."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

import structlog
from fastapi import APIRouter, Request, Response
from sqlalchemy import Engine
from starlette.concurrency import run_in_threadpool

from orchestrator.api import auth
from orchestrator.api.login import cookies, pages
from orchestrator.api.login.form import read_form
from orchestrator.api.login.opening import check_configured, end_login
from orchestrator.api.rights import RULES
from shared.access.actors import Key
from shared.access.roles import Permission
from shared.notifications import publish_keys_changed

log = structlog.get_logger(__name__)

P = Permission
TEXTS: Final = {
    P.TASKS_READ: "see tasks, their steps, events and reasons",
    P.TASKS_SUBMIT: "submit tasks",
    P.TASKS_CANCEL: "cancel tasks",
    P.TASKS_SIGNAL: "send signals to tasks",
    P.TASKS_REPLAY: "run ended tasks again",
    P.TASKS_LABEL: "set the labels of tasks",
    P.TASKS_DECIDE: "approve and reject what agents propose, and answer them",
    P.FILES_WRITE: "upload and delete files",
    P.BUDGETS_RAISE: "raise the budgets of tasks",
    P.PAYLOADS_READ: "see inputs, outputs, prompts and errors",
    P.AGENTS_READ: "see agents and capabilities",
    P.DEFINITIONS_READ: "see definitions and the code of functions",
    P.DEFINITIONS_ACTIVATE: "roll back and disable agents, quarantine functions, and undo it",
    P.OPERATIONS_READ: "see pauses, limits, stops, standing budgets, schedules, webhooks, workers and alerts",
    P.LIMITS_WRITE: "change pauses, limits, stops and standing budgets",
    P.ALERTS_WRITE: "acknowledge and silence alerts",
    P.ERRORS_WRITE: "resolve and ignore kinds of errors",
    P.SCHEDULES_WRITE: "change schedules",
    P.WEBHOOKS_WRITE: "change webhooks",
    P.KEYS_MANAGE: "manage API keys and logins",
    P.AUDIT_READ: "read the audit log",
    P.TASKS_ERASE: "erase the contents of tasks",
}

router = APIRouter(route_class=pages.Page, include_in_schema=False)


@router.get("/account")
async def show_account(request: Request) -> Response:
    """The page of the login."""
    check_configured(request)
    login = await auth.login_of(request)
    if login.key is None or login.user is None or login.expires_at is None:
        return _to_login(request, login.renewable)
    return pages.render(
        "account.html",
        user=login.user,
        key=login.key,
        bounds=login.key.scope.description,
        sees_keys=RULES["GET /v1/keys"].permits(login.key),
        expires_at=login.expires_at,
        idle_minutes=request.app.state.settings.login_idle_seconds / 60,
        permissions=[(permission, TEXTS[permission]) for permission in Permission if login.key.may(permission)],
        csrf_token=auth.csrf_token_of(request),
    )


@router.post("/logout")
async def log_out(request: Request) -> Response:
    """Ends the login of the cookie, if there is one."""
    check_configured(request)
    key = (await auth.login_of(request)).key
    if key is not None:
        fields = await read_form(request)
        auth.check_csrf(request, fields.get("csrf_token", ""))
        await run_in_threadpool(_end, request, key)
    response = pages.see_other("/login")
    own: cookies.Cookies = request.app.state.cookies
    own.clear(response, cookies.SESSION)
    return response


def _to_login(request: Request, renewable: bool) -> Response:
    """Lead a browser without a login to one, and back to this page.

    A login with OpenID Connect that has expired is renewed: the provider is asked again, and the role read again.
    """
    if pages.came_from_elsewhere(request):
        return pages.continued(request.url.path)
    how = "/login/oidc" if renewable and request.app.state.provider is not None else "/login"
    return pages.see_other(f"{how}?return_to={quote(request.url.path)}")


def _end(request: Request, key: Key) -> None:
    database: Engine = request.app.state.engine
    with database.begin() as connection:
        end_login(connection, request, key)
    publish_keys_changed()
    log.info("login_closed", user=key.name, login=str(key.login))
