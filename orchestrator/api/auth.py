"""The bearer key that guards every route but those of health and documentation, and its rights there."""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from orchestrator.api import masking
from orchestrator.api.rights import RULES
from shared.access import key_text
from shared.access.actors import Key, bootstrap_key
from shared.errors import Unauthorized
from shared.settings import Settings

CHECK_SECONDS = 1.0
"""How often the key of a request that waits is checked again."""
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


def administrator(key: bytes) -> Key:
    """Return the administrator's key, with its rights."""
    return bootstrap_key(fingerprint(key))


def fingerprint(key: bytes) -> str:
    """Return the first eight hexadecimal digits of a key's SHA-256."""
    return hashlib.sha256(key).hexdigest()[:8]


async def authorize(request: Request, credentials: Credentials) -> None:
    """Admit a request whose key is valid and may use this endpoint.

    Raises:
        Unauthorized: there is no key, or it is not valid (any more).
        Forbidden: the key lacks a permission.
        SQLAlchemyError: the key cannot be looked up.
    """
    # Headers are bytes; Starlette decodes them as Latin-1.
    shown = credentials.credentials.encode("latin-1", "replace") if credentials else b""
    request.state.shown_key = shown
    rule = RULES[f"{request.method} {request.scope['route'].path}"]
    token = request.app.state.metrics_token
    if rule.scraped and token is not None and hmac.compare_digest(shown, token):
        return
    key = request.state.key = await _authenticate(request, shown)
    masking.show_to(key)
    rule.check(key)


async def check_again(request: Request) -> None:
    """Check the key of a request that has waited.

    Raises:
        Unauthorized: the key was revoked, or has expired.
    """
    await _authenticate(request, request.state.shown_key)


async def _authenticate(request: Request, shown: bytes) -> Key:
    state = request.app.state
    if hmac.compare_digest(shown, state.api_key):
        return state.administrator  # type: ignore[no-any-return]
    text = shown.decode("ascii", "replace")
    if not text.startswith(key_text.MARK):
        raise Unauthorized(NO_KEY)
    if not key_text.is_well_formed(text):
        raise Unauthorized(
            f"The API key is mistyped or not complete: it must be {key_text.MARK} and 49 letters and digits, with a "
            "checksum. Copy it again."
        )
    found = await state.keys.find(key_text.digest(text))
    if found.key is not None:
        return found.key  # type: ignore[no-any-return]
    raise Unauthorized(found.refusal or NO_KEY)


async def _caller(request: Request) -> Key:
    key: Key = request.state.key
    return key


Caller = Annotated[Key, Depends(_caller)]
"""The key of the request."""
