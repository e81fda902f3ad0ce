"""The key, or the cookie of a login, that guards a route, and its rights there."""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from orchestrator.api import masking
from orchestrator.api.addresses import address_of, network_of
from orchestrator.api.key_cache import KeyCache
from orchestrator.api.login import cookies
from orchestrator.api.rights import RULES
from shared.access import key_text, sessions
from shared.access.actors import Key, bootstrap_key
from shared.access.sessions import Administrator, Login, Opener
from shared.errors import Forbidden, Unauthorized
from shared.settings import Settings

CHECK_SECONDS = 1.0
"""How often the key of a request that waits is checked again."""
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
CSRF_HEADER = "Minion-CSRF"
NO_KEY = "No API key, or a wrong one: send `Authorization: Bearer KEY`."

Credentials = Annotated[
    HTTPAuthorizationCredentials | None,
    Depends(
        HTTPBearer(
            auto_error=False,
            description="An API key: one that `minion keys create` showed, or the administrator's (MINION_API_KEY, or "
            "the file `api_key`).",
        )
    ),
]


def read_key(settings: Settings) -> bytes:
    """Return the administrator's key.

    Raises:
        NotConfigured: the key is missing, too short, or not valid in a header.
    """
    return settings.require_server_api_key().encode()


def read_metrics_token(settings: Settings) -> bytes | None:
    """Return the token that is enough for `GET /metrics`; None if there is none.

    Raises:
        NotConfigured: it is too short, or not valid in a header.
    """
    token = settings.server_metrics_token()
    return token.encode() if token else None


def administrator(key: bytes) -> Administrator:
    """Return the administrator's key, with its rights."""
    return Administrator(key=bootstrap_key(fingerprint(key)), text=key)


def fingerprint(key: bytes) -> str:
    """Return the first eight hexadecimal digits of a key's SHA-256."""
    return hashlib.sha256(key).hexdigest()[:8]


async def authorize(request: Request, credentials: Credentials) -> None:
    """Admit a request whose key or login is valid and may use this endpoint.

    Raises:
        Unauthorized: there is no key and no login, or it is not valid (any more).
        Forbidden: the key lacks a permission, or the request lacks the CSRF token of its login.
        TooManyRequests: it has used up its quota, or too many attempts from this address have failed.
        SQLAlchemyError: the key cannot be looked up.
    """
    request.state.credentials = credentials
    rule = RULES[f"{request.method} {request.scope['route'].path_format}"]
    if rule.scraped and _is_scraper(request):
        return
    rule.check(await authenticate(request, credentials))


async def authenticate(request: Request, credentials: Credentials) -> Key:
    """Return the key or login of a request, counted and noted.

    Raises:
        Unauthorized: there is no key and no login, or it is not valid (any more).
        Forbidden: the request lacks the CSRF token of its login.
        TooManyRequests: it has used up its quota, or too many attempts from this address have failed.
        SQLAlchemyError: the key cannot be looked up.
    """
    request.state.credentials = credentials
    quotas = request.app.state.quotas
    if not _was_valid(request):
        quotas.check_address(request)
    try:
        key: Key = await _authenticate(request, request.app.state.logins)
    except Forbidden:  # the login is valid; the request lacks its CSRF token
        raise
    except Unauthorized:
        quotas.count_failure(request)
        raise
    request.state.key = key
    quotas.spend(key, request)
    masking.show_to(key)
    request.app.state.key_addresses.note(key, network_of(address_of(request)))
    return key


async def check_again(request: Request) -> None:
    """Check the key or the login of a request that has waited. A login is not used by that.

    Raises:
        Unauthorized: the key was revoked or the login ended, or it has expired.
    """
    await _authenticate(request, request.app.state.watching_logins)


async def opener_of(request: Request, shown: bytes) -> Opener:
    """Return the proof that a key is, to open a login with it.

    Raises:
        Unauthorized: it is not a valid key.
        SQLAlchemyError: it cannot be looked up.
    """
    state = request.app.state
    if hmac.compare_digest(shown, state.api_key):
        return sessions.by_administrator(state.administrator)
    text = shown.decode("ascii", "replace")
    if not text.startswith(key_text.MARK):
        raise Unauthorized(NO_KEY)
    if not key_text.is_well_formed(text):
        raise Unauthorized(
            f"The API key is mistyped or not complete: it must be {key_text.MARK} and 49 letters and digits, with a "
            "checksum. Copy it again."
        )
    digest = key_text.digest(text)
    found = await state.keys.find(digest)
    if found.key is not None:
        return sessions.by_key(found.key, digest)
    request.state.refused_key = found.refused
    raise Unauthorized(found.refusal or NO_KEY)


async def login_of(request: Request, *, use: bool = True) -> Login:
    """Return the login of the request's cookie; one without a key if there is none, or it is over.

    Args:
        use: note that it was used, which a page that only watches does not.

    Raises:
        TooManyRequests: too many attempts from this address have failed.
        SQLAlchemyError: it cannot be looked up.
    """
    token = _cookie_of(request)
    if token is None:
        return Login()
    state = request.app.state
    logins: KeyCache[Login] = state.logins if use else state.watching_logins
    digest = sessions.digest(token)
    if not logins.was_valid(digest):
        request.app.state.quotas.check_address(request)
    login = await logins.find(digest)
    if login.key is None:
        request.app.state.quotas.count_failure(request)
    return login


def csrf_token_of(request: Request) -> str:
    """Return the CSRF token for forms on a page, for the login of the request's cookie."""
    return sessions.csrf_token(_cookie_of(request) or "")


def check_csrf(request: Request, shown: str) -> None:
    """Check that an unsafe request was sent by a page of ours.

    Raises:
        Forbidden: it does not have the CSRF token of its login.
    """
    token = _cookie_of(request)
    if token is None or not hmac.compare_digest(shown.encode(), sessions.csrf_token(token).encode()):
        raise Forbidden(
            f"The CSRF token is missing or wrong. A request that changes something and is authorised by a cookie must "
            f"have it in the header {CSRF_HEADER}. Reload the page, or send an API key instead."
        )


def _is_scraper(request: Request) -> bool:
    token: bytes | None = request.app.state.metrics_token
    return token is not None and hmac.compare_digest(_key_of(request), token)


def _was_valid(request: Request) -> bool:
    """Return whether a key or login needs no attempt: others may fail behind the same proxy."""
    state, token, shown = request.app.state, _login_of(request), _key_of(request)
    if token is not None:
        return state.logins.was_valid(sessions.digest(token))  # type: ignore[no-any-return]
    if hmac.compare_digest(shown, state.api_key):
        return True
    text = shown.decode("ascii", "replace")
    return key_text.is_well_formed(text) and state.keys.was_valid(key_text.digest(text))


async def _authenticate(request: Request, logins: KeyCache[Login]) -> Key:
    """Return the rights of the request's key; if it shows none, those of its cookie."""
    token = _login_of(request)
    if token is not None:
        return await _authenticate_login(request, token, logins)
    return (await opener_of(request, _key_of(request))).key


def _key_of(request: Request) -> bytes:
    """Return the key that a request shows, or nothing."""
    credentials: HTTPAuthorizationCredentials | None = request.state.credentials
    # Headers are bytes; Starlette decodes them as Latin-1.
    return credentials.credentials.encode("latin-1", "replace") if credentials else b""


def _login_of(request: Request) -> str | None:
    """Return the cookie of a request that shows no key."""
    return _cookie_of(request) if request.state.credentials is None else None


async def _authenticate_login(request: Request, token: str, logins: KeyCache[Login]) -> Key:
    login = await logins.find(sessions.digest(token))
    request.state.refused_key = login.key or login.refused
    if login.key is None:
        raise Unauthorized(f"{login.refusal or 'There is no such login.'} Log in again at /login, or send an API key.")
    if request.method not in SAFE_METHODS:
        check_csrf(request, request.headers.get(CSRF_HEADER, ""))
    return login.key


def _cookie_of(request: Request) -> str | None:
    own: cookies.Cookies = request.app.state.cookies
    return own.read_token(request, cookies.SESSION)


async def _caller(request: Request) -> Key:
    key: Key = request.state.key
    return key


Caller = Annotated[Key, Depends(_caller)]
"""The key of the request."""
