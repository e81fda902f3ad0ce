"""Actors over HTTP: the key, and the name that its holder claims.

All callers share one key, so the name is a claim without proof; records say so.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import Depends, Header, Request

from shared.errors import InvalidInput

LONGEST_NAME = 100

ClaimedName = Annotated[
    str | None,
    Header(
        description="The name of the person or program that acts, for the record. It is shown as a claim. 1 to "
        "100 printable characters, UTF-8."
    ),
]


async def actor_of(request: Request, minion_actor: ClaimedName = None) -> str:
    """Return the actor as records name it: `api:3f2a9c01 (claims to be Ann)`, with the fingerprint of the key.

    Raises:
        InvalidInput: the name contains characters that cannot be displayed.
    """
    key = f"api:{fingerprint(request.app.state.api_key)}"
    if minion_actor is None:
        return key
    return f"{key} (claims to be {_checked(minion_actor)})"


def fingerprint(key: bytes) -> str:
    """Return the first eight hexadecimal digits of a key's SHA-256."""
    return hashlib.sha256(key).hexdigest()[:8]


def _checked(name: str) -> str:
    try:
        # Headers are bytes; Starlette reads them as Latin-1.
        readable = name.encode("latin-1").decode()
    except UnicodeError:
        raise InvalidInput("Invalid header Minion-Actor: it must be UTF-8.") from None
    if not 0 < len(readable) <= LONGEST_NAME or not readable.isprintable():
        raise InvalidInput(f"Invalid header Minion-Actor: it must have 1 to {LONGEST_NAME} printable characters.")
    return readable


Actor = Annotated[str, Depends(actor_of)]
