"""Log in with OpenID Connect: to the provider, and back with a code."""

from __future__ import annotations

import hmac

import structlog
from fastapi import APIRouter, Request, Response
from sqlalchemy import Engine, text
from starlette.concurrency import run_in_threadpool

from orchestrator.api.addresses import address_of
from orchestrator.api.login import attempt, cookies, pages
from orchestrator.api.login.attempt import Attempt
from orchestrator.api.login.mapping import RoleMapping
from orchestrator.api.login.opening import check_configured, count_attempt, open_login
from orchestrator.api.login.provider import CALLBACK, Provider, visible
from orchestrator.api.login.return_path import checked
from shared.access.sessions import Opener
from shared.errors import MinionError, NotFound, Unauthorized

log = structlog.get_logger(__name__)

CLOCK = text("SELECT EXTRACT(epoch FROM now())::float")

router = APIRouter(route_class=pages.Page, include_in_schema=False)


@router.get("/login/oidc")
async def begin(request: Request) -> Response:
    """Leads the browser to the identity provider."""
    provider = _provider(request)
    begun = Attempt.begin(checked(request.query_params.get("return_to")))
    response = pages.see_other(await provider.authorization_url(begun))
    own: cookies.Cookies = request.app.state.cookies
    # The provider sends the browser back from another site.
    own.set(response, begun.cookie_name, begun.cookie, attempt.SECONDS, "lax")
    return response


@router.get(CALLBACK)
async def finish(request: Request) -> Response:
    """Opens a login for the identity that the provider confirms."""
    provider = _provider(request)
    begun = _begun(request)
    count_attempt(request)
    try:
        opener = await _identify(request, provider, begun)
    except MinionError as refused:
        log.warning("login_refused", how="oidc", reason=refused.message, address=address_of(request))
        response = pages.of_error(refused, request, begun.return_to)
    else:
        response = pages.continued(begun.return_to)
        await open_login(request, response, opener, request.app.state.settings.oidc_login_seconds)
    own: cookies.Cookies = request.app.state.cookies
    own.clear(response, begun.cookie_name, "lax")
    return response


def _provider(request: Request) -> Provider:
    check_configured(request)
    provider: Provider | None = request.app.state.provider
    if provider is None:
        raise NotFound("No identity provider is configured (MINION_OIDC_ISSUER). Log in with an API key.")
    return provider


def _begun(request: Request) -> Attempt:
    """Return the attempt that this answer belongs to: one that this browser began."""
    own: cookies.Cookies = request.app.state.cookies
    state = request.query_params.get("state", "")
    begun = Attempt.read(own.read(request, attempt.cookie_name(state)) or "")
    if begun is None or not hmac.compare_digest(state.encode(), begun.state.encode()):
        raise Unauthorized(
            f"This login was not begun in this browser, or more than {attempt.SECONDS // 60} minutes ago. Begin it at "
            f"{own.origin}/login, and allow its cookies."
        )
    return begun


async def _identify(request: Request, provider: Provider, begun: Attempt) -> Opener:
    answer = request.query_params
    await provider.check_sender(answer.get("iss"))
    if "error" in answer:
        raise Unauthorized(f"The identity provider refused the login: {visible(answer['error'])}.")
    if not answer.get("code"):
        raise Unauthorized("The answer of the identity provider has no code. Log in again.")
    tokens = await provider.redeem(answer["code"], begun)
    now = await run_in_threadpool(_now, request.app.state.statements)
    claims = await provider.claims(tokens, begun, now)
    mapping: RoleMapping = request.app.state.role_mapping
    return mapping.opener(claims)


def _now(database: Engine) -> float:
    with database.connect() as connection:
        now: float = connection.execute(CLOCK).scalar_one()
    return now
