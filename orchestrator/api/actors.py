"""Actors over HTTP: the key that the request proved, and the name that its holder claims."""

from __future__ import annotations

from typing import Annotated
from uuid import uuid4

from fastapi import Depends, Header, Request, Response

from orchestrator.api.auth import Caller
from shared.access import actors
from shared.errors import InvalidInput

LONGEST_NAME = 100
REQUEST_ID = "X-Request-Id"

ClaimedName = Annotated[
    str | None,
    Header(
        description="The name of the person or program that acts, for the record. It is shown as a claim. 1 to "
        "100 printable characters, UTF-8."
    ),
]


RequestId = Annotated[
    str | None,
    Header(
        alias=REQUEST_ID,
        pattern=r"^[\x21-\x7e]{1,100}$",
        description="An id of the request, for the audit log. The answer to an act repeats it, or has a new one.",
    ),
]


async def actor_of(
    request: Request, response: Response, key: Caller, minion_actor: ClaimedName = None, request_id: RequestId = None
) -> actors.Actor:
    """Return the actor of the request. Records name it, such as `ci mk_3fA9xQ (claims to be Ann)`.

    Raises:
        InvalidInput: the name contains characters that cannot be displayed.
    """
    id = response.headers[REQUEST_ID] = request_id or str(uuid4())
    address = request.client.host if request.client else None
    return actors.Actor(key, None if minion_actor is None else _checked(minion_actor), address, id)


def _checked(name: str) -> str:
    try:
        # Headers are bytes; Starlette reads them as Latin-1.
        readable = name.encode("latin-1").decode()
    except UnicodeError:
        raise InvalidInput("Invalid header Minion-Actor: it must be UTF-8.") from None
    if not 0 < len(readable) <= LONGEST_NAME or not readable.isprintable():
        raise InvalidInput(f"Invalid header Minion-Actor: it must have 1 to {LONGEST_NAME} printable characters.")
    return readable


Actor = Annotated[actors.Actor, Depends(actor_of)]
