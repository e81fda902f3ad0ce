"""A local server that speaks the Messages API, as far as the tests ask: scripted replies, recorded requests."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-test-key"


def text(said: str, stop_reason: str = "end_turn") -> dict[str, Any]:
    """A reply of text."""
    return {"content": [{"type": "text", "text": said}], "stop_reason": stop_reason}


def tool_use(*calls: tuple[str, dict[str, Any]], said: str = "") -> dict[str, Any]:
    """A reply that calls tools."""
    content: list[dict[str, Any]] = [{"type": "text", "text": said}] if said else []
    for number, (name, arguments) in enumerate(calls, 1):
        content.append({"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": arguments})
    return {"content": content, "stop_reason": "tool_use"}


def error(status: int, kind: str = "api_error", message: str = "scripted") -> dict[str, Any]:
    """An error of the API."""
    return {"status": status, "error": {"type": kind, "message": message}}


@dataclass
class MessagesApi:
    """The server. Each request takes the next reply of the script; the last one is given again and again."""

    url: str = ""
    script: list[dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0

    def answer(self, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body for a request."""
        self.requests.append(body)
        self.headers.append(headers)
        if KEY not in (headers.get("x-api-key"), headers.get("authorization", "").removeprefix("Bearer ")):
            return 401, {"type": "error", "error": {"type": "authentication_error", "message": "invalid x-api-key"}}
        reply = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if "error" in reply:
            return reply["status"], {"type": "error", "error": reply["error"]}
        time.sleep(self.seconds)
        return 200, {
            "id": f"msg_{len(self.requests)}",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "stop_sequence": None,
            "usage": {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 100},
            **reply,
        }


@contextmanager
def serving() -> Iterator[MessagesApi]:
    """Serves the API on a loopback port."""
    api = MessagesApi()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, reply = api.answer({name.lower(): value for name, value in self.headers.items()}, body)
            if self.path != "/v1/messages":
                status, reply = 404, {"type": "error", "error": {"type": "not_found_error", "message": self.path}}
            data = json.dumps(reply).encode()
            try:
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                # The SDK waits this long before it tries again.
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(data)
            except BrokenPipeError:
                pass

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
