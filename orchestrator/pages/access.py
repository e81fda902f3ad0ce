"""Who reads a page: the login of the browser's cookie, with the rights that it has in the API."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import Depends, Request, Response
from sqlalchemy import Engine

from orchestrator.api import auth, masking
from orchestrator.api.addresses import address_of, network_of
from orchestrator.api.login import pages as login_pages
from orchestrator.api.login.form import read_form
from orchestrator.api.login.opening import check_configured
from orchestrator.pages.rights import RULES
from shared.access.actors import Key
from shared.access.sessions import Login
from shared.errors import Unauthorized

LIVE_HEADER = "minion-live"
"""On requests that a page sends by itself: they do not count as use of the login."""
LARGEST_FORM = 2 << 20


class LoggedOut(Unauthorized):
    """The browser is not logged in."""


async def authorize(request: Request) -> None:
    """Admit a browser whose login may see this page.

    Raises:
        LoggedOut: it has no login, or it is over.
        Forbidden: the login lacks a permission.
        TooManyRequests: its key has used up its quota, or too many attempts from this address have failed.
        NotFound: browsers cannot log in to this installation.
        SQLAlchemyError: the login cannot be looked up.
    """
    check_configured(request)
    request.state.credentials = None  # a page is for the cookie alone
    login = await auth.login_of(request, use=LIVE_HEADER not in request.headers)
    request.state.login = login
    if login.key is None:
        raise LoggedOut("This page needs a login. Log in at /login.")
    key = request.state.key = login.key
    request.app.state.quotas.spend(key, request)
    masking.show_to(key)
    request.app.state.key_addresses.note(key, network_of(address_of(request)))
    RULES[f"{request.method} {request.scope['route'].path}"].check(key)


def to_login(request: Request) -> Response:
    """Lead a browser to the login, and back to this page; after a form, to the page that had it."""
    login: Login = request.state.login
    if login_pages.came_from_elsewhere(request):
        return login_pages.continued(own_address(request))
    # A form must lead to no other site, so its browser is asked first.
    renewable = login.renewable and request.app.state.provider is not None and request.method != "POST"
    how = "/login/oidc" if renewable else "/login"
    return login_pages.see_other(f"{how}?return_to={quote(own_address(request), safe='')}")


async def sent_form(request: Request) -> dict[str, str]:
    """Return the fields of a form of ours.

    Raises:
        Forbidden: it lacks the CSRF token of its login.
        InvalidInput, TooLarge: it is not a form, or too large.
    """
    fields = await read_form(request, LARGEST_FORM)
    auth.check_csrf(request, fields.pop("csrf_token", ""))
    return fields


async def _engine_of_pages(request: Request) -> Engine:
    engine: Engine = request.app.state.pages_engine
    return engine


Form = Annotated[dict[str, str], Depends(sent_form)]
Reading = Annotated[Engine, Depends(_engine_of_pages)]
"""The database for pages: few connections, and a short limit for each statement."""


def reader_of(request: Request) -> Key | None:
    """Return the key of the request's login, if it has been found."""
    return getattr(request.state, "key", None)


def own_address(request: Request) -> str:
    """Return the address of a page; for a form, that of the page that had it."""
    path = request.url.path
    if request.method == "POST":
        path = path.rpartition("/")[0] or path
    return f"{path}?{request.url.query}" if request.url.query else path
