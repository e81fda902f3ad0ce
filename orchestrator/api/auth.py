"""The bearer key that guards every route below /v1."""

from __future__ import annotations

import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from shared.errors import Unauthorized
from shared.settings import Settings

Credentials = Annotated[
    HTTPAuthorizationCredentials | None,
    Depends(HTTPBearer(auto_error=False, description="The API key: MINION_API_KEY, or the file `api_key`.")),
]


def read_key(settings: Settings) -> bytes:
    """Return the key that callers must present.

    Raises:
        NotConfigured: the key is missing, too short, or not valid in a header.
    """
    return settings.require_server_api_key().encode()


async def require_key(request: Request, credentials: Credentials) -> None:
    """Admit a request with the right key.

    Raises:
        Unauthorized: no key, or a wrong one; the message does not say which.
    """
    # Headers are bytes; Starlette decodes them as Latin-1.
    shown = credentials.credentials.encode("latin-1", "replace") if credentials else b""
    if not hmac.compare_digest(shown, request.app.state.api_key):
        raise Unauthorized("No API key, or a wrong one: send `Authorization: Bearer KEY`.")
