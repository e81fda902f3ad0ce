"""MCP servers in a thread: one built with the reference package, in either era, and a raw one that can lie."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, TypedDict

import uvicorn
from mcp.server import MCPServer
from mcp.server.extension import Extension
from mcp.server.mcpserver import Context, Image
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    EmbeddedResource,
    ResourceLink,
    TextContent,
    TextResourceContents,
    ToolAnnotations,
)
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.http_server import answering
from tests.support.media_files import png

MODERN = "2026-07-28"


class Order(TypedDict):
    """An order."""

    order: str
    state: str


@dataclass
class Shop:
    """The reference server, and what it was asked.

    Attributes:
        calls: the tool, its arguments and `_meta` of each call.
        requests: the headers of each HTTP request.
        proceed: what `wait` waits for.
    """

    url: str = ""
    calls: list[tuple[str, dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    requests: list[dict[str, str]] = field(default_factory=list)
    proceed: threading.Event = field(default_factory=threading.Event)
    server: MCPServer[Any] = field(default_factory=lambda: MCPServer("shop", instructions="A shop."))
    lifetime: Any = None

    def forget_sessions(self) -> None:
        """End all sessions, as a restart does."""
        self.lifetime._server_instances.clear()

    def add_tools(self) -> None:
        """Register the tools."""
        tool = self.server.tool

        @tool(description="Looks up an order.", annotations=ToolAnnotations(read_only_hint=True))
        def lookup_order(order: str, context: Context[Any, Any]) -> Order:
            self.note("lookup_order", {"order": order}, context)
            return {"order": order, "state": "sent"}

        @tool(name="charge.card", description="Charges a card.")
        def charge(order: str, cents: int, context: Context[Any, Any]) -> str:
            self.note("charge.card", {"order": order, "cents": cents}, context)
            return f"charged {cents}"

        @tool(description="Sets a note.", annotations=ToolAnnotations(idempotent_hint=True))
        async def note(text: str, context: Context[Any, Any]) -> str:
            self.note("note", {"text": text}, context)
            await context.report_progress(1, 2, "half")
            return "noted"

        @tool(description="Waits.", annotations=ToolAnnotations(idempotent_hint=True), structured_output=False)
        async def wait(context: Context[Any, Any]) -> str:
            self.note("wait", {}, context)
            await asyncio.to_thread(self.proceed.wait)
            return "waited"

        @tool(description="A picture.", structured_output=False)
        def picture() -> list[Any]:
            return ["the picture:", Image(data=png(), format="png")]

        @tool(description="Every kind of content.")
        def everything() -> CallToolResult:
            return CallToolResult(
                content=[
                    TextContent(text="hello"),
                    AudioContent(data=base64.b64encode(b"x" * 300).decode(), mime_type="audio/wav"),
                    ResourceLink(name="manual", uri="shop://manual", mime_type="text/html"),
                    EmbeddedResource(resource=TextResourceContents(uri="shop://a", text="a text")),
                    EmbeddedResource(
                        resource=BlobResourceContents(
                            uri="shop://b", blob=base64.b64encode(png()).decode(), mime_type="image/png"
                        )
                    ),
                    EmbeddedResource(resource=BlobResourceContents(uri="shop://c", blob="AAAA", mime_type="a/b")),
                ]
            )

        @tool(description="Fails.")
        def fail() -> str:
            raise ToolError("the order is closed")

    def note(self, name: str, arguments: dict[str, Any], context: Context[Any, Any]) -> None:
        """Keep what a tool was called with."""
        meta = context.request_context.meta
        self.calls.append((name, arguments, dict(meta or {})))


@contextmanager
def reference_server(era: str = "modern", *, extensions: Sequence[Extension] = (), **options: Any) -> Iterator[Shop]:
    """Run the server of the `mcp` package. `legacy` refuses messages of 2026-07-28, as servers of 2025-11-25 do.

    Args:
        extensions: of the protocol.
        options: of `streamable_http_app`, such as `json_response`.
    """
    shop = Shop(server=MCPServer("shop", instructions="A shop.", extensions=extensions))
    shop.add_tools()
    app: Any = shop.server.streamable_http_app(**options)
    shop.lifetime = shop.server.session_manager
    noting = _Noting(app, shop.requests, legacy=era == "legacy")
    listener = socket.create_server(("127.0.0.1", 0))
    shop.url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
    server = uvicorn.Server(uvicorn.Config(noting, log_level="critical", lifespan="on", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield shop
    finally:
        shop.proceed.set()
        server.should_exit = server.force_exit = True
        thread.join(10)
        listener.close()


class _Noting:
    """Keeps the headers of requests; as a legacy server, refuses a version that it does not know."""

    def __init__(self, app: ASGIApp, requests: list[dict[str, str]], *, legacy: bool) -> None:
        self.app = app
        self.requests = requests
        self.legacy = legacy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode(): value.decode() for name, value in scope.get("headers", ())}
        if scope["type"] == "http":
            self.requests.append(headers)
        if self.legacy and headers.get("mcp-protocol-version") == MODERN:
            error = {"code": -32600, "message": "Bad Request: Unsupported protocol version"}
            answer = JSONResponse({"jsonrpc": "2.0", "id": "server-error", "error": error}, 400)
            await answer(scope, receive, send)
            return
        await self.app(scope, receive, send)


Answer = tuple[int, dict[str, str], bytes]


@dataclass
class RawServer:
    """A server that answers from a script. A script's element is an answer, a JSON-RPC result, or a function of the
    connection and the message that returns either, or answers itself. Without a script it discovers, and echoes calls.
    """

    url: str = ""
    script: list[Any] = field(default_factory=list)
    asked: list[tuple[dict[str, str], Any]] = field(default_factory=list)

    @property
    def methods(self) -> list[str]:
        return [message["method"] for _, message in self.asked]


@contextmanager
def raw_server(*script: Any, discovers: bool = True) -> Iterator[RawServer]:
    """Run a raw server.

    Args:
        discovers: it answers `server/discover` as a server of 2026-07-28, without using the script.
    """
    raw = RawServer(script=list(script))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            message = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
            raw.asked.append((dict(self.headers), message))
            if discovers and message.get("method") == "server/discover":
                made: Any = {"supportedVersions": [MODERN], "resultType": "complete"}
            else:
                made = raw.script.pop(0) if raw.script else text_result("ok")
            self.answer(made, message)

        def do_GET(self) -> None:
            raw.asked.append((dict(self.headers), {"method": "GET"}))
            self.answer(raw.script.pop(0) if raw.script else (405, {}, b""), {})

        def answer(self, made: Any, message: Any) -> None:
            if callable(made):
                made = made(self, message)
            if made is None:
                return
            status, headers, body = made if isinstance(made, tuple) else json_answer(message, made)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with answering(Handler) as port:
        raw.url = f"http://127.0.0.1:{port}/mcp"
        yield raw


def text_result(text: str) -> dict[str, Any]:
    """The result of a call."""
    return {"resultType": "complete", "content": [{"type": "text", "text": text}]}


def json_answer(message: dict[str, Any], result: dict[str, Any]) -> Answer:
    """A result as the answer to a request; `{"error": …}` is an error."""
    content = {"error": result["error"]} if "error" in result else {"result": result}
    body = json.dumps({"jsonrpc": "2.0", "id": message.get("id"), **content}).encode()
    return 200, {"Content-Type": "application/json"}, body


def events(*texts: bytes) -> Callable[[BaseHTTPRequestHandler, Any], None]:
    """A stream of events that ends after these texts; `%d` in them is the request's id."""

    def send(handler: BaseHTTPRequestHandler, message: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        for text in texts:
            handler.wfile.write(text.replace(b"%d", str(message.get("id")).encode()))
            handler.wfile.flush()

    return send
