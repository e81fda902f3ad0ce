"""Log in with a link that works once, on the machine that printed it."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from sqlalchemy.exc import IntegrityError

from orchestrator.api.addresses import address_of
from orchestrator.api.login import cookies, pages
from orchestrator.api.login.opening import check_configured, count_attempt, open_login
from shared.access import login_links, sessions
from shared.errors import Forbidden, Unauthorized
from shared.settings import is_loopback

HOME = "/overview"

router = APIRouter(route_class=pages.Page, include_in_schema=False)


@router.get("/login/link")
async def log_in(request: Request, code: str = "") -> Response:
    """Opens a login with the rights of the administrator's key."""
    check_configured(request)
    if request.scope.get("asked_for_head"):  # who looks at a link does not use it up
        return Response(headers=pages.HEADERS)
    state, address = request.app.state, address_of(request)
    count_attempt(request)
    if not is_loopback(address) or not is_loopback(state.settings.api_host):
        raise Forbidden("Links log in on the machine that printed them only. Log in with an API key.")
    cookie = login_links.cookie_of(state.api_key, code)
    response = pages.see_other(HOME)
    opener = sessions.by_administrator(state.administrator)
    try:
        await open_login(request, response, opener, state.settings.login_seconds, cookie)
    except IntegrityError:
        if state.cookies.read_token(request, cookies.SESSION) != cookie:
            raise Unauthorized("This link was used before: it works once. Log in with an API key.") from None
        # The same browser, which has the login: it was clicked twice.
    return response
