"""An OAuth authorization server that issues tokens, or whatever a test wants."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs

from tests.support.http_server import answering


class Authority:
    """An authorization server: `answer` returns the status and the body for a path."""

    def __init__(self) -> None:
        self.url = ""
        self.headers: dict[str, str] = {}
        self.asked: list[tuple[str, str, dict[str, list[str]], str | None]] = []
        self.numbers = iter(range(1, 1000))
        self.answer: Callable[[str], tuple[int, Any]] = lambda path: (200, self.token())

    def token(self, **fields: Any) -> dict[str, Any]:
        return {"access_token": f"token-{next(self.numbers)}", "token_type": "Bearer", "expires_in": 3600, **fields}


@contextmanager
def authority_server() -> Iterator[Authority]:
    """Run an authorization server."""
    made = Authority()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            sent = parse_qs(self.rfile.read(length).decode())
            made.asked.append((self.command, self.path, sent, self.headers.get("Authorization")))
            status, content = made.answer(self.path)
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**made.headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    with answering(Handler) as port:
        made.url = f"http://127.0.0.1:{port}"
        yield made
