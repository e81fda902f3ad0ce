"""Pages in their frame, and errors as pages."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from typing import Any
from urllib.parse import quote, urlencode

import structlog
from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from jinja2 import ChoiceLoader, Environment, PackageLoader
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, PlainTextResponse

from orchestrator.api import auth
from orchestrator.api.base_path import link
from orchestrator.api.login import pages as login_pages
from orchestrator.api.problems import (
    RETRY_AFTER_SECONDS,
    STATEMENT_TIMEOUT,
    count_refusal,
    is_unavailable,
    log_unexpected,
)
from orchestrator.pages import formats
from orchestrator.pages.access import LoggedOut, own_address, reader_of, to_login
from orchestrator.pages.navigation import MAIN, MORE, reachable
from orchestrator.turn_notes import notes_of
from shared.access.roles import Permission
from shared.access.scope import DEFAULT_NAMESPACE
from shared.errors import InvalidInput, MinionError, NotFound, Unauthorized, Unavailable, requirement
from shared.tasks.task_query import written_query

log = structlog.get_logger(__name__)

HEADERS = {
    **login_pages.HEADERS,
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
}
TYPES = {"css": "text/css", "js": "text/javascript"}
ASSET_SECONDS = 86_400
RAW_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; sandbox; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

LESS = {
    "/tasks": "Ask for less: name an agent, a state or a time, like `agent:triage state:failed since:1d`.",
    "/analytics": "Ask for a shorter time.",
    "/audit": "Ask for less: name an act, an actor or a time.",
}
"""Advice for pages that have filters, if a statement takes too long."""

router = APIRouter(include_in_schema=False)


class Page(APIRoute):
    """A route whose errors are pages in the frame."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, with errors as pages."""
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except LoggedOut:
                return to_login(request)
            except MinionError as error:
                return of_error(request, error)
            except RequestValidationError as error:
                return of_error(request, _wrong_parameters(error))
            except (HTTPException, ClientDisconnect):
                raise
            except SQLAlchemyError as error:
                if not is_unavailable(request, error):
                    return of_unexpected(request, error)
                return of_error(request, _of_database(request, error))
            except Exception as error:
                return of_unexpected(request, error)

        return handled


def render(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """Return a page for the reader of the request."""
    reader = reader_of(request)
    frame = {
        "reader": reader,
        "may": lambda permission: reader is not None and reader.may(Permission(permission)),
        "csrf_token": auth.csrf_token_of(request) if reader is not None else "",
        "path": request.url.path,
        "places": reachable(MAIN, reader),
        "more_places": reachable(MORE, reader),
        "asset": asset_address,
        "live": None,
        **values,
    }
    return HTMLResponse(_environment().get_template(template).render(frame), status, HEADERS)


def raw(text: str) -> Response:
    """Return a payload as plain text, which no browser runs or guesses the type of."""
    return PlainTextResponse(text.encode("utf-8", "backslashreplace"), headers=RAW_HEADERS)


def of_error(request: Request, error: MinionError) -> Response:
    """Return an error as a page in the frame."""
    if isinstance(error, Unauthorized):
        count_refusal(request, error)
    page = _problem(request, error.status, error.message)
    if isinstance(error, Unavailable):
        page.headers["Retry-After"] = str(error.detail.get("retry_after", RETRY_AFTER_SECONDS))
    return page


def of_unexpected(request: Request, error: Exception) -> Response:
    """Return the page of an unexpected error, with the id that the log has it under."""
    advice = "Try again" if request.method != "POST" else "Check whether your change was made before you send it again"
    error_id = log_unexpected(request, error)
    return _problem(
        request,
        500,
        f"This page failed unexpectedly. {advice}. If it fails again, report it with what the log of the orchestrator "
        f"has under error_id={error_id}.",
    )


def _problem(request: Request, status: int, message: str) -> HTMLResponse:
    back = own_address(request) if request.method == "POST" and "route" in request.scope else None
    title = HTTPStatus(status).phrase
    return render(request, "problem.html", status, title=title, message=message, back=back)


@router.get("/assets/{name}")
async def asset(name: str) -> Response:
    """A style sheet or a script of the pages."""
    found = _assets().get(name)
    if found is None:
        raise NotFound(f"There is no file {name[:100]!r}.")
    headers = {"Cache-Control": f"max-age={ASSET_SECONDS}", "X-Content-Type-Options": "nosniff"}
    return Response(found, media_type=TYPES[name.rpartition(".")[2]], headers=headers)


def asset_address(name: str) -> str:
    """Return the address of an asset, which changes with its content."""
    return link(f"/assets/{name}?v={hashlib.sha256(_assets()[name]).hexdigest()[:12]}")


def tasks_where(namespace: str = DEFAULT_NAMESPACE, **terms: str) -> str:
    """Return the address of the list of the tasks of a namespace that match all terms."""
    others = {} if namespace == DEFAULT_NAMESPACE else {"namespace": namespace}
    return link(f"/tasks?q={quote(written_query({**terms, **others}), safe='')}")


def address_in(namespace: str, path: str, **query: Any) -> str:
    """Return the address of a page about something in a namespace."""
    others = {} if namespace == DEFAULT_NAMESPACE else {"namespace": namespace}
    written = urlencode({**query, **others})
    return link(path) + (f"?{written}" if written else "")


@cache
def _assets() -> dict[str, bytes]:
    folder = files(__package__) / "assets"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in TYPES}


def asset_names() -> list[str]:
    """Return the names of all style sheets and scripts."""
    return sorted(_assets())


@cache
def _environment() -> Environment:
    loader = ChoiceLoader([PackageLoader(__package__ or ""), PackageLoader("orchestrator.api.login")])
    made = login_pages.environment(loader)
    made.filters |= formats.FILTERS
    made.filters["quoted"] = lambda value: quote(str(value), safe="")
    made.filters["notes"] = notes_of
    made.globals["between"] = formats.between
    made.globals["tasks_where"] = tasks_where
    made.globals["address_in"] = address_in
    return made


def _wrong_parameters(error: RequestValidationError) -> MinionError:
    faults = "; ".join(f"{fault['loc'][-1]}: {requirement(fault['msg'])}" for fault in error.errors())
    return InvalidInput(f"The address is not valid: {faults}.")


def _of_database(request: Request, error: SQLAlchemyError) -> MinionError:
    if isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) == STATEMENT_TIMEOUT:
        advice = LESS.get(request.url.path, "Try again in a minute.")
        return Unavailable(f"The database took too long for this page, which was given up to spare it. {advice}")
    return Unavailable("The database cannot be reached at the moment. Try again.")
