"""The MCP server at /mcp, beside the API, with the API's keys, limits and addresses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, FastAPI, Request
from mcp.server.context import ServerRequestContext
from mcp.server.streamable_http import check_accept_headers
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types import INVALID_REQUEST, PARSE_ERROR
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from orchestrator.api import auth
from orchestrator.api.auth import Credentials
from orchestrator.api.base_path import link
from orchestrator.api.body import TaskBody, one_task
from orchestrator.mcp.api import Api
from orchestrator.mcp.callers import Connect
from orchestrator.mcp.server import McpServer, build
from orchestrator.mcp.within import WithinApp
from shared.contracts import strict_json
from shared.errors import Forbidden, InvalidInput, Unauthorized
from shared.settings import Settings, is_loopback

PATH = "/mcp"
METADATA = "/.well-known/oauth-protected-resource"
NAMESPACE = "namespace"
"""The query parameter that chooses a namespace, for keys that are not bound to one."""
NOT_ACCEPTABLE = "The header Accept must allow both application/json and text/event-stream: an answer may be either."

IsClosing = Callable[[], bool]
Make = Callable[[Connect, IsClosing], McpServer]

router = APIRouter(include_in_schema=False)


class Site:
    """The server in one process."""

    def __init__(self, app: FastAPI, make: Make) -> None:
        self._app = app
        self._is_closing = False
        self.server = make(self._connect, lambda: self._is_closing)
        # Without sessions, any orchestrator answers any request, also after a restart.
        self.manager = StreamableHTTPSessionManager(
            self.server, stateless=True, max_request_body_size=one_task(app.state.settings)
        )

    def release(self) -> None:
        """Answer all requests that wait, now and from now on. May be called from any thread."""
        self._is_closing = True

    def _connect(self, context: ServerRequestContext) -> Api:
        request: Request = context.request  # type: ignore[assignment]  # requests come over HTTP only
        return Api(WithinApp(self._app, request), request.query_params.get(NAMESPACE))


async def admit(request: Request, credentials: Credentials) -> None:
    """Admit a request with a valid key, before its body is read.

    Raises:
        Forbidden: it is from a page of another site.
        Unauthorized: it has no key, or the key is not valid; the error names the metadata of this resource.
        TooManyRequests: the key has used up its quota, or too many attempts from this address have failed.
    """
    check_origin(request)
    try:
        # A cookie is sent by any page; a key only by the client that has it.
        if credentials is None:
            raise Unauthorized(auth.NO_KEY)
        await auth.authenticate(request, credentials)
    except Unauthorized as error:
        error.detail["resource_metadata"] = _metadata_address(request)
        raise


@router.post(PATH, dependencies=[Depends(admit)])
async def serve(request: Request, sent: TaskBody) -> Response:
    """Answers a message of an MCP client."""
    try:
        message = strict_json.parse(sent)
    except InvalidInput as error:
        return _refusal(PARSE_ERROR, error.message)
    if fault := _fault_of_envelope(message):
        return _refusal(INVALID_REQUEST, fault)
    if not all(check_accept_headers(request)):
        return _refusal(INVALID_REQUEST, NOT_ACCEPTABLE, status=406)
    return _Answer(request.app.state.mcp.manager, sent)


@router.get(METADATA)
@router.get(METADATA + PATH)
async def describe(request: Request) -> Response:
    """The protected-resource metadata (RFC 9728). Keys come from an operator, so no authorization server is named."""
    return JSONResponse(
        {
            "resource": _address(request) + link(PATH),
            "resource_name": "Minions",
            "bearer_methods_supported": ["header"],
            "resource_documentation": _address(request) + link("/docs"),
        }
    )


def add_to(app: FastAPI, make: Make = build) -> None:
    """Add the server to the API's application.

    Args:
        make: builds the server.
    """
    state = app.state
    state.mcp = Site(app, make)
    state.watches.append(state.mcp)
    app.include_router(router)
    base = state.settings.base_path
    if base:
        # RFC 9728 has the whole path of the resource after the well-known one.
        app.add_api_route(METADATA + base + PATH, describe, include_in_schema=False)
    state.routes += router.routes
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(running: FastAPI) -> AsyncIterator[None]:
        async with inner(running), running.state.mcp.manager.run():
            yield

    app.router.lifespan_context = lifespan


def check_origin(request: Request) -> None:
    """Refuse requests of pages of other sites, and of those that name this machine by a name of theirs.

    Raises:
        Forbidden: the origin, or the host, is not this installation.
    """
    settings: Settings = request.app.state.settings
    own, local = settings.login_url(), is_loopback(settings.api_host)
    asked = _host_of(f"//{request.headers.get('host', '')}")
    known = _host_of(own) if own else asked
    if local and asked != known and not is_loopback(asked):
        raise Forbidden(f"The host {asked[:100]!r} is not this installation. Set MINION_PUBLIC_URL to its address.")
    origin = request.headers.get("origin")
    if origin is None:
        return
    theirs = _host_of(origin)
    if theirs != known and not (local and is_loopback(theirs)):
        raise Forbidden(f"Requests of pages from {origin[:100]!r} are refused: it is not this installation.")


def _fault_of_envelope(message: Any) -> str | None:
    """Return what is wrong with a JSON-RPC message; None if nothing is."""
    if isinstance(message, list):
        return "Batches are not supported: send each message in a separate request."
    if not isinstance(message, dict):
        return "The body must be a JSON-RPC message: an object."
    if message.get("jsonrpc") != "2.0":
        return 'The member `jsonrpc` must be "2.0".'
    if "id" in message and (isinstance(message["id"], bool) or not isinstance(message["id"], str | int)):
        return "The member `id` must be text or an integer. Leave it out in notifications."
    if not message.keys() & {"result", "error"}:
        if not isinstance(message.get("method"), str):
            return "The member `method` must be the name of a method."
        if not isinstance(message.get("params", {}), dict | None):
            return "The member `params` must be an object."
    return None


def _refusal(code: int, text: str, *, status: int = 400) -> Response:
    return JSONResponse({"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": text}}, status)


def _host_of(address: str) -> str:
    """Return the host in an address; nothing if it is none."""
    with suppress(ValueError):
        return urlsplit(address).hostname or ""
    return ""


def _metadata_address(request: Request) -> str:
    base: str = request.app.state.settings.base_path
    return _address(request) + METADATA + base + PATH


def _address(request: Request) -> str:
    settings: Settings = request.app.state.settings
    return settings.public_url or str(request.base_url).rstrip("/")


class _Answer(Response):
    """The answer of the protocol's transport to a body that has been read."""

    def __init__(self, manager: StreamableHTTPSessionManager, sent: bytes) -> None:
        super().__init__()
        self._manager = manager
        self._sent = sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        unread = [self._sent]

        async def receive_again() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            return await receive()

        await self._manager.handle_request(scope, receive_again, send)
