"""A server that answers with HTTP responses as they were recorded: bytes, status and headers, in their order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.support.http_server import answering

JSON = {"content-type": "application/json"}
STREAM = {"content-type": "text/event-stream; charset=utf-8"}


@dataclass
class Recorded:
    """One response.

    Attributes:
        cut: the connection is lost after the body, before its end.
        size: of the pieces that the body is sent in; 0: in one.
    """

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: STREAM)
    cut: bool = False
    size: int = 0


def plain(body: Any, status: int = 200, **headers: str) -> Recorded:
    """A response of JSON; the names of headers have a `-` for each `_`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Recorded(json.dumps(body).encode(), status, {**JSON, **named})


def stream(*events: dict[str, Any], **how: Any) -> Recorded:
    """A stream of events, as the API writes it."""
    return Recorded("".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n" for each in events).encode(), **how)


def begun(model: str = "claude-sonnet-5-5", usage: Any = None, **fields: Any) -> dict[str, Any]:
    """The event that a stream begins with."""
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": []}
    usage = {"input_tokens": 10, "output_tokens": 1} if usage is None else usage
    return {"type": "message_start", "message": {**message, "stop_reason": None, "usage": usage, **fields}}


def block(index: int, empty: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of one content block."""
    return [
        {"type": "content_block_start", "index": index, "content_block": empty},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def text(index: int, *pieces: str) -> list[dict[str, Any]]:
    """The events of a block of text."""
    return block(index, {"type": "text", "text": ""}, *({"type": "text_delta", "text": piece} for piece in pieces))


def call(index: int, name: str, *pieces: str, **fields: Any) -> list[dict[str, Any]]:
    """The events of a tool call, whose input comes in pieces of JSON."""
    empty = {"type": "tool_use", "id": f"toolu_{index}", "name": name, "input": {}, **fields}
    return block(index, empty, *({"type": "input_json_delta", "partial_json": piece} for piece in pieces))


def ended(stop_reason: str | None = "end_turn", usage: Any = None, **more: Any) -> list[dict[str, Any]]:
    """The events that a stream ends with. `more` stands beside the delta."""
    delta = {"stop_reason": stop_reason, "stop_sequence": None, "stop_details": None, **more.pop("delta", {})}
    usage = {"output_tokens": 20} if usage is None else usage
    return [{"type": "message_delta", "delta": delta, "usage": usage, **more}, {"type": "message_stop"}]


@dataclass
class RecordedServer:
    """Recorded responses, and the requests that were received."""

    responses: list[Recorded] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    counts: list[Recorded] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve_recorded() -> Iterator[RecordedServer]:
    """The server, on a loopback port."""
    replay = RecordedServer()
    with answering(_handler(replay)) as port:
        replay.url = f"http://127.0.0.1:{port}"
        yield replay


def _handler(replay: RecordedServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.path.startswith("/v1/messages/count_tokens"):
                response = replay.counts.pop(0)
            else:
                replay.requests.append(body)
                response = replay.responses.pop(0) if replay.responses else plain({"error": "nothing is left"}, 418)
            with suppress(ConnectionError):
                self._send(response)

        def _send(self, response: Recorded) -> None:
            self.send_response(response.status)
            for name, value in {**response.headers, "transfer-encoding": "chunked"}.items():
                self.send_header(name, value)
            self.end_headers()
            size = response.size or len(response.body) or 1
            for start in range(0, len(response.body), size):
                piece = response.body[start : start + size]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.flush()
            self.close_connection = response.cut
            if not response.cut:
                self.wfile.write(b"0\r\n\r\n")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
