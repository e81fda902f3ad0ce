"""The API in the same process: requests to it without a connection, for the server at /mcp."""

from __future__ import annotations

import httpx2
from fastapi import FastAPI, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from minions.aio.transport import AsyncTransport
from orchestrator.api.actors import REQUEST_ID
from orchestrator.api.quotas import WITHIN
from orchestrator.mcp.api import SECONDS

PASSED_ON = ("authorization", "minion-actor", REQUEST_ID.lower(), "traceparent")


class WithinApp(AsyncTransport):
    """Requests to the application that serves a request, in place of that request's caller, without a connection."""

    def __init__(self, app: FastAPI, request: Request) -> None:
        self.url = "the API"
        self.timeout = SECONDS
        self.retries = 0  # it is the same process
        client = (request.client.host, request.client.port) if request.client else ("", 0)
        headers = {name: value for name in PASSED_ON if (value := request.headers.get(name)) is not None}
        self._http = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(_counted_once(app), raise_app_exceptions=False, client=client),
            base_url="http://within",
            headers=headers,
            timeout=None,
            trust_env=False,
        )


def _counted_once(app: ASGIApp) -> ASGIApp:
    """Return the application for requests that count towards no quota: their cause has been counted."""

    async def within(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, WITHIN: True}, receive, send)

    return within
