"""Actors over HTTP: the key that the request proved, and the name that its holder claims."""

from __future__ import annotations

import re
from typing import Annotated
from uuid import uuid4

from fastapi import Depends, Header, Request, Response

from orchestrator.api.addresses import address_of
from orchestrator.api.auth import Caller
from shared.access import actors
from shared.errors import InvalidInput

LONGEST_NAME = 100
REQUEST_ID = "X-Request-Id"
REQUEST_ID_FORM = re.compile(r"[\x21-\x7e]{1,100}")

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
        description="An id of the request, for the audit log: 1 to 100 printable ASCII characters without spaces. The "
        "answer to an act repeats it. Without one, or in another form, the request gets a new one.",
    ),
]


async def actor_of(
    request: Request, response: Response, key: Caller, minion_actor: ClaimedName = None, request_id: RequestId = None
) -> actors.Actor:
    """Return the actor of the request. Records name it, such as `ci mk_3fA9xQ (claims to be Ann)`.

    Raises:
        InvalidInput: the name contains characters that cannot be displayed.
    """
    # An act, such as a stop, must not fail because of what a proxy puts there.
    id = request_id if request_id and REQUEST_ID_FORM.fullmatch(request_id) else str(uuid4())
    response.headers[REQUEST_ID] = id
    claimed = None if minion_actor is None else _checked(minion_actor)
    return actors.Actor(key, claimed, address_of(request), id)


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
