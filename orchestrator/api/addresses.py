"""The address that a request comes from."""

from __future__ import annotations

from fastapi import Request

LONGEST = 64


def address_of(request: Request) -> str | None:
    """Return the address of the client. Of a trusted proxy's header, which may contain any text, only the beginning."""
    return request.client.host[:LONGEST] if request.client else None
