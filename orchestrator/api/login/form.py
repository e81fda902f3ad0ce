"""Log in with an API key."""

from __future__ import annotations

import hmac
from urllib.parse import parse_qs, quote

import structlog
from fastapi import APIRouter, Request, Response

from orchestrator.api import auth
from orchestrator.api.addresses import address_of
from orchestrator.api.base_path import link
from orchestrator.api.login import cookies, pages
from orchestrator.api.login.opening import check_configured, count_attempt, open_login
from orchestrator.api.login.return_path import checked
from orchestrator.api.problems import count_refusal
from shared.access import sessions
from shared.errors import Forbidden, InvalidInput, TooLarge, Unauthorized

log = structlog.get_logger(__name__)

LARGEST_FORM = 8 << 10
FORM_TYPE = "application/x-www-form-urlencoded"
FORM_SECONDS = 86_400.0

router = APIRouter(route_class=pages.Page, include_in_schema=False)


@router.get("/login")
async def show_form(request: Request) -> Response:
    """The form; a browser that is logged in is led on."""
    check_configured(request)
    return_to = checked(request.query_params.get("return_to"))
    if (await auth.login_of(request)).key is not None:
        return pages.see_other(return_to)
    if pages.came_from_elsewhere(request):
        return pages.continued(f"/login?return_to={quote(return_to)}")
    return _form(request, return_to)


@router.post("/login")
async def log_in(request: Request) -> Response:
    """Opens a login with the key in the form."""
    check_configured(request)
    fields = await read_form(request)
    _check_form(request, fields)
    count_attempt(request)
    return_to = checked(fields.get("return_to"))
    try:
        opener = await auth.opener_of(request, fields.get("key", "").strip().encode())
    except Unauthorized as refused:
        log.warning("login_refused", how="key", reason=refused.message, address=address_of(request))
        count_refusal(request, refused)
        message = "This is not a valid API key." if refused.message == auth.NO_KEY else refused.message
        return _form(request, return_to, message)
    response = pages.see_other(return_to)
    await open_login(request, response, opener, request.app.state.settings.login_seconds)
    return response


@router.get("/login/style.css")
async def style() -> Response:
    """The style sheet of the pages."""
    headers = {"Cache-Control": f"max-age={pages.STYLE_SECONDS}", "X-Content-Type-Options": "nosniff"}
    return Response(pages.style(), media_type="text/css", headers=headers)


async def read_form(request: Request, largest: int = LARGEST_FORM) -> dict[str, str]:
    """Return the fields of a form, each once.

    Raises:
        InvalidInput: it is not a form.
        TooLarge: it has more than `largest` bytes.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM_TYPE:
        raise InvalidInput(f"The body must be a form: send `Content-Type: {FORM_TYPE}`.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > largest:
            raise TooLarge(f"The form is larger than the {largest:,} bytes that are accepted here.")
    try:
        fields = parse_qs(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=20)
    except ValueError:
        raise InvalidInput("The body is not a form: it must be percent-encoded UTF-8.") from None
    if repeated := [name for name, values in fields.items() if len(values) > 1]:
        raise InvalidInput(f"The form has the field {repeated[0][:50]!r} more than once.")
    return {name: values[0] for name, values in fields.items()}


def _form(request: Request, return_to: str, message: str | None = None) -> Response:
    own: cookies.Cookies = request.app.state.cookies
    token = own.read_token(request, cookies.FORM) or sessions.new_token()
    provider = request.app.state.provider
    response = pages.render(
        "login.html",
        200 if message is None else 401,
        {} if message is None else {"WWW-Authenticate": "Bearer"},
        form_token=sessions.csrf_token(token),
        message=message,
        provider=provider and provider.name,
        return_to=return_to,
    )
    own.set(response, cookies.FORM, token, FORM_SECONDS)
    return response


def _check_form(request: Request, fields: dict[str, str]) -> None:
    """Raise Forbidden unless the form is one that this browser got from us: another site cannot log it in."""
    own: cookies.Cookies = request.app.state.cookies
    token = own.read_token(request, cookies.FORM)
    if token is None:
        raise Forbidden(
            f"The browser did not return the cookie of the form. Open {own.origin}{link('/login')}, allow its cookies, "
            "and try again."
        )
    if not hmac.compare_digest(fields.get("form_token", "").encode(), sessions.csrf_token(token).encode()):
        raise Forbidden("The form is not one of this page, or too old. Open it again.")
