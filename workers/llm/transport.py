"""HTTP/1.1 transport of the model client, on urllib3.

A reply of a model is streamed in dozens to thousands of HTTP chunks. urllib3 leaves most of the work on a chunk to
Python's buffered reader, which is written in C; the transport of httpx2 does it in Python.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, IncompleteRead, RemoteDisconnected
from typing import Any

import httpx2
from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPSConnectionPool, PoolManager, Timeout, exceptions

MAX_CONNECTIONS = 1000
IDLE_SECONDS = 5.0
"""A connection is not used again after this time, because the server may be about to close it."""
READ_BYTES = PIECE_BYTES = 65_536
# A server that has vanished is noticed before the time-out of a call.
SOCKET_OPTIONS = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 60), ("TCP_KEEPCNT", 5))
        if hasattr(socket, name)
    ),
]


class DirectTransport(httpx2.BaseTransport):
    """Connects to servers directly, keeps connections open, and streams responses."""

    def __init__(self) -> None:
        self._pools = PoolManager(
            maxsize=MAX_CONNECTIONS,
            block=True,
            ssl_context=httpx2.create_ssl_context(),
            socket_options=SOCKET_OPTIONS,
        )
        self._pools.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request.

        Raises:
            httpx2.TransportError: of the kinds that httpx2's own transport raises.
        """
        url = request.url
        if url.scheme not in ("http", "https") or not url.host:
            raise httpx2.UnsupportedProtocol("Request URL is missing an 'http://' or 'https://' protocol.")
        seconds = request.extensions.get("timeout", {})
        with _errors_of_httpx2():
            received = self._pools.connection_from_host(url.host, url.port, url.scheme).urlopen(
                request.method,
                url.raw_path.decode("ascii"),
                body=_pieces(request.read()),
                headers=dict(request.headers.raw),  # type: ignore[arg-type]  # bytes are sent as they are
                retries=False,
                redirect=False,
                assert_same_host=False,
                timeout=Timeout(connect=seconds.get("connect"), read=seconds.get("read")),
                pool_timeout=seconds.get("pool"),
                preload_content=False,
                decode_content=False,
            )
        return httpx2.Response(
            status_code=received.status,
            headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in received.headers.iteritems()],
            stream=_Body(received),
            extensions={"http_version": b"HTTP/1.1", "reason_phrase": (received.reason or "").encode("latin-1")},
        )

    def close(self) -> None:
        """Close all connections."""
        self._pools.clear()


class _Body(httpx2.SyncByteStream):
    """A response's body as it arrives, still compressed if the server compressed it."""

    def __init__(self, received: BaseHTTPResponse) -> None:
        self._received = received

    def __iter__(self) -> Iterator[bytes]:
        with _errors_of_httpx2():
            while piece := self._received.read1(READ_BYTES):
                yield piece

    def close(self) -> None:
        """Release the connection. If the body has not been read to its end, the connection is closed."""
        self._received.close()
        self._received.release_conn()


class _Pool(HTTPConnectionPool):
    """Connections to one server."""

    def _get_conn(self, timeout: float | None = None) -> Any:
        connection: Any = super()._get_conn(timeout)
        if time.monotonic() - getattr(connection, "idle_since", math.inf) > IDLE_SECONDS:
            connection.close()  # The request opens it again.
        return connection

    def _put_conn(self, conn: Any) -> None:
        if conn is not None:
            conn.idle_since = time.monotonic()
        super()._put_conn(conn)


class _TlsPool(_Pool, HTTPSConnectionPool):
    """The same over TLS."""


def _pieces(body: bytes) -> Iterator[bytes]:
    """Split a body, because the time-out is for each piece that is sent."""
    return (body[begin : begin + PIECE_BYTES] for begin in range(0, len(body), PIECE_BYTES))


@contextmanager
def _errors_of_httpx2() -> Iterator[None]:
    try:
        yield
    except exceptions.HTTPError as error:
        raise _translated(error) from error
    except ValueError:
        # The text of http.client quotes the header, which may be a secret.
        raise httpx2.LocalProtocolError("A header or the path has characters that cannot be sent.") from None


def _translated(error: exceptions.HTTPError) -> httpx2.TransportError:
    cause = error.__cause__ or next((each for each in error.args if isinstance(each, Exception)), error)
    match error, cause:
        case exceptions.NewConnectionError() | exceptions.SSLError() | exceptions.LocationValueError(), _:
            return httpx2.ConnectError(str(cause))
        case exceptions.ConnectTimeoutError(), _:
            return httpx2.ConnectTimeout("timed out")
        case exceptions.ReadTimeoutError(), _:
            return httpx2.ReadTimeout("timed out")
        case exceptions.EmptyPoolError(), _:
            return httpx2.PoolTimeout("no connection became free")
        case _, RemoteDisconnected():
            return httpx2.RemoteProtocolError("Server disconnected without sending a response.")
        case _, IncompleteRead():
            return httpx2.RemoteProtocolError("peer closed connection without sending complete message body")
        case _, HTTPException():
            return httpx2.RemoteProtocolError(str(cause))
    return httpx2.ReadError(str(cause))
