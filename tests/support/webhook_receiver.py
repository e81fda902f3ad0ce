"""An endpoint for webhooks: a real HTTP server in a thread that keeps what it got and answers as it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from minions.webhooks import verify
from tests.support.http_server import answering
from tests.support.processes import wait_until

SECRET = "whsec_" + "c2VjcmV0" * 4


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def verified(self, secret: str = SECRET) -> dict[str, Any]:
        """The message, if its signature fits."""
        return verify(self.body, self.headers, secret)


@dataclass
class Receiver:
    """The server. `answers` are taken one after the other, then 204; each is a status with headers, or a call."""

    port: int = 0
    answers: list[Any] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def wait_for(self, number: int, timeout: float = 20.0) -> list[Received]:
        """All requests, as soon as there are so many."""
        wait_until(lambda: len(self.received) >= number, f"{number} requests, got {len(self.received)}", timeout)
        return self.received

    def ids(self) -> set[str]:
        """The different messages."""
        return {one.id for one in self.received}


@contextmanager
def receiving(*answers: int | tuple[int, dict[str, str]] | Callable[[], int]) -> Iterator[Receiver]:
    """Runs an endpoint."""
    receiver = Receiver(answers=list(answers))
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                receiver.received.append(Received(self.path, dict(self.headers), body))
                answer = receiver.answers.pop(0) if receiver.answers else 204
            status, headers = answer if isinstance(answer, tuple) else (answer() if callable(answer) else answer, {})
            text = b"" if status == 204 else b"Nobody\x00 is \r\nhere"
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(text))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: Any) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # the sender gave up
                super().handle()

    with answering(Handler, receiver.port) as receiver.port:
        yield receiver
