"""Pages about logins: plain HTML without scripts, and nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from jinja2 import BaseLoader, Environment, PackageLoader, StrictUndefined
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import HTMLResponse

from orchestrator.api.base_path import link
from orchestrator.api.login.return_path import checked
from orchestrator.api.problems import RETRY_AFTER_SECONDS, count_refusal, is_unavailable
from shared.errors import MinionError, Unauthorized, Unavailable

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not `no-referrer`, with which browsers hide the origin of a form.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
STYLE_SECONDS = 3600


def render(template: str, status: int = 200, headers: dict[str, str] | None = None, **values: Any) -> HTMLResponse:
    """Return a page."""
    text = _environment().get_template(template).render(values)
    return HTMLResponse(text, status, {**HEADERS, **(headers or {})})


def see_other(address: str) -> Response:
    """Return a redirect by GET: to a page of ours, by its path, or to another site."""
    target = link(address) if address.startswith("/") else address
    return Response(status_code=303, headers={**HEADERS, "Location": target})


def continued(path: str) -> Response:
    """Return a page that leads to another one at once.

    After a link on another site, a browser sends our `SameSite=Strict` cookies only with the next request, which must
    come from a page of ours: after a redirect, they would still be missing.
    """
    return render("continue.html", path=path)


def came_from_elsewhere(request: Request) -> bool:
    """Return whether the browser followed a link on another site."""
    return request.headers.get("sec-fetch-site") == "cross-site"


@cache
def style() -> str:
    """Return the style sheet of all pages."""
    return (files(__package__) / "templates" / "style.css").read_text(encoding="utf-8")


class Page(APIRoute):
    """A route whose errors are pages too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, with errors as pages."""
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except MinionError as error:
                return of_error(error, request)
            except SQLAlchemyError as error:
                if not is_unavailable(request, error):
                    raise
                return of_error(Unavailable("The database cannot be reached at the moment. Try again."), request)

        return handled


def of_error(error: MinionError, request: Request, return_to: str | None = None) -> Response:
    """Return an error as a page that leads back to the login.

    Args:
        return_to: the page that the login leads to; None: the one that the request names.
    """
    headers = {}
    if isinstance(error, Unauthorized):
        count_refusal(request, error)
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(error.detail.get("retry_after", RETRY_AFTER_SECONDS))
    if error.status == Unauthorized.status:
        headers["WWW-Authenticate"] = "Bearer"
    return render(
        "error.html",
        error.status,
        headers,
        title=HTTPStatus(error.status).phrase,
        message=error.message,
        return_to=checked(return_to or request.query_params.get("return_to")),
    )


def environment(loader: BaseLoader) -> Environment:
    """Return the environment of templates: everything that they show is escaped."""
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.globals["link"] = link
    return made


@cache
def _environment() -> Environment:
    return environment(PackageLoader(__package__ or ""))
