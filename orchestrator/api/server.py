"""The API's HTTP server: Uvicorn on a low-latency socket, with a time limit for incomplete requests."""

from __future__ import annotations

import asyncio
import socket
import sys
from functools import partial
from http import HTTPStatus
from typing import Any, Literal

import h11
import uvicorn
from fastapi import FastAPI, Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from orchestrator.api import problems
from shared.errors import Unavailable
from shared.settings import Settings

Part = Literal["headers", "body"]

LOWEST_RATE = 16 << 10
"""Bytes per second: a body that arrives at this rate or faster may take as long as it needs."""


def listen(settings: Settings) -> socket.socket:
    """Return the API's socket, bound before anything starts, so that a taken port is detected at once.

    Raises:
        Unavailable: the port is taken, or the address does not belong to this machine.
    """
    family = socket.AF_INET6 if ":" in settings.api_host else socket.AF_INET
    # With protocol 0, asyncio would leave Nagle's algorithm on, and each answer would wait 40 ms for an ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.api_host, settings.api_port))
    except OSError as error:
        listener.close()
        raise Unavailable(
            f"The API cannot listen on {settings.api_host} port {settings.api_port}: {error.strerror}. Set "
            "MINION_API_HOST and MINION_API_PORT, or stop the process that uses the port."
        ) from None
    return listener


def server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """Return Uvicorn's configuration for the API."""
    protocol: Any = partial(_PunctualProtocol, seconds=settings.api_request_seconds)
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        # By default, every local caller could choose its address.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
    )


class _PunctualProtocol(H11Protocol):
    """HTTP/1.1 that ends incomplete requests, and answers unreadable ones with a problem.

    Uvicorn itself would keep the former indefinitely, and close the connection in the middle of the latter, so that
    their sender sees a broken connection.

    Headers must be complete within `seconds`. A body must also be complete within `seconds`, or bring `LOWEST_RATE` in
    each period of that length. Time in which the server does not read is not counted.
    """

    def __init__(self, *arguments: Any, seconds: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._seconds = seconds
        self._received = 0
        self._part: Part | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch("headers")

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        self._received += len(data)
        self._watch(self._missing())

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that is not HTTP, or whose headers are too large. What still arrives of it is discarded."""
        too_large = getattr(sys.exc_info()[1], "error_status_hint", None) == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        self._answer(problems.unreadable(too_large=too_large))
        self._refused = True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch(self._missing())

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._watch(None)

    def _missing(self) -> Part | None:
        """The part of a request that has begun and is not complete."""
        if self._refused:
            return "headers"
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            return "body"
        return "headers" if state is h11.IDLE and self.conn.trailing_data[0] else None

    def _watch(self, part: Part | None) -> None:
        """Start the timer for a part; the same part continues its timer."""
        if part == self._part:
            return
        self._part = part
        self._start_period()

    def _start_period(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._received = 0
        if self._part is not None:
            self._timer = self.loop.call_later(self._seconds, self._period_over)

    def _period_over(self) -> None:
        fast = self._part == "body" and self._received >= self._seconds * LOWEST_RATE
        if fast or self.flow.read_paused:
            self._start_period()
        elif not self.transport.is_closing():
            self._give_up()

    def _give_up(self) -> None:
        """Answer 408, if an answer is still possible, and close. For the application the caller has disconnected."""
        if not self._refused and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and self._missing():
            self._answer(problems.timed_out(self._seconds))
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _answer(self, response: Response) -> None:
        headers = [*response.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=response.status_code, headers=headers),
            h11.Data(data=bytes(response.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
