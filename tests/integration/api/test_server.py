"""The API's server on real sockets: answers without delay; requests that stay half-sent, or are too large together."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx2
import pytest

from orchestrator.api.app import create_app
from orchestrator.api.server import listen
from shared.errors import NotConfigured
from shared.settings import Settings
from tests.support.processes import wait_until

from .conftest import Api, serving

SOON = 0.5
"""Seconds that a request may stay half-sent here."""
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
MANY = b"POST /v1/tasks/bulk HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n"


@contextmanager
def started(settings: Settings, **changed: object) -> Iterator[Api]:
    """A server with other settings."""
    changed_settings = settings.model_copy(update=changed)
    app = create_app(changed_settings)
    with serving(app) as port:
        yield Api(app, f"http://127.0.0.1:{port}", port, settings.require_api_key())


@pytest.fixture
def impatient(settings: Settings, database: object) -> Iterator[Api]:
    with started(settings, api_request_seconds=SOON) as api:
        yield api


def connect(http_api: Api) -> socket.socket:
    return socket.create_connection(("127.0.0.1", http_api.port), timeout=30)


def read_all(connection: socket.socket) -> bytes:
    """Return the bytes that the server sends until it closes."""
    said = b""
    while part := connection.recv(65536):
        said += part
    return said


def dribble_until_refused(connection: socket.socket) -> None:
    """Sends a byte now and then, as long as the server's end of the connection is open."""
    with suppress(ConnectionError):
        while True:
            connection.sendall(b"x")
            time.sleep(0.02)


def bulk_head(http_api: Api, size: int) -> bytes:
    return MANY % (size, f"Authorization: Bearer {http_api.key}\r\n".encode())


def test_accepted_sockets_send_without_delay(settings: Settings) -> None:
    async def nodelay() -> int:
        accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                option = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                accepted.set_result(option)
                transport.close()

        with listen(settings.model_copy(update={"api_port": 0})) as listener:
            port = listener.getsockname()[1]
            async with await asyncio.get_running_loop().create_server(Protocol, sock=listener):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return await accepted

    assert asyncio.run(nodelay()) != 0


@pytest.mark.parametrize("sent", [b"GET", GET, b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 5000])
def test_headers_that_stay_incomplete_end_with_408(impatient: Api, sent: bytes) -> None:
    with connect(impatient) as connection:
        connection.sendall(sent)
        said = read_all(connection)
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head.lower()
    assert json.loads(body)["code"] == "request_timeout"


def test_a_connection_without_a_request_is_closed(impatient: Api) -> None:
    with connect(impatient) as connection:
        assert read_all(connection) == b""


def test_request_sent_byte_by_byte_is_ended(impatient: Api) -> None:
    with connect(impatient) as connection:
        connection.sendall(GET + b"X-Long: ")
        dribble_until_refused(connection)


def test_a_second_request_on_a_connection_has_the_same_limit(impatient: Api) -> None:
    with connect(impatient) as connection:
        connection.sendall(GET + b"\r\n" + GET)
        said = read_all(connection)
    assert said.count(b"HTTP/1.1 200 ") == said.count(b"HTTP/1.1 408 ") == 1


def test_a_body_that_stays_incomplete_ends_with_408(impatient: Api) -> None:
    with connect(impatient) as connection:
        connection.sendall(bulk_head(impatient, 1000) + b'{"tasks": [')
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")


def test_unread_body_closes_its_connection(impatient: Api) -> None:
    """The refusal is sent at once; what follows of the body cannot hold the connection."""
    with connect(impatient) as connection:
        connection.sendall(MANY % (10**6, b""))
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")
        dribble_until_refused(connection)


def test_a_slow_body_may_take_longer_than_the_limit(impatient: Api) -> None:
    body = b'{"tasks": []}' + b" " * 200_000
    with connect(impatient) as connection:
        connection.sendall(bulk_head(impatient, len(body)))
        began = time.monotonic()
        for start in range(0, len(body), 6000):
            connection.sendall(body[start : start + 6000])
            time.sleep(0.04)
        assert time.monotonic() - began > 2 * SOON
        assert b"HTTP/1.1 201 " in connection.recv(65536)


def test_a_long_wait_is_no_half_sent_request(impatient: Api) -> None:
    with impatient.http() as http:
        task = http.post("/v1/tasks", json={"messages": [{"role": "user", "content": "x"}]}).json()["id"]
        began = time.monotonic()
        assert http.get(f"/v1/tasks/{task}", params={"wait": 3 * SOON}).status_code == 200
        assert time.monotonic() - began >= 3 * SOON


def test_bodies_share_one_memory(settings: Settings, database: object) -> None:
    """Of bodies that arrive together, those that find no room are refused; ordinary calls are served all the time."""
    body = b'{"tasks": []' + b" " * 600_000 + b"}"
    with started(settings, api_memory_bytes=3 << 20) as api, ExitStack() as open_ones:
        held = open_ones.enter_context(connect(api))
        held.sendall(bulk_head(api, len(body)) + body[:-1])
        with api.http() as http:
            memory = api.app.state.body_memory
            wait_until(lambda: memory.used > 500_000, "the first body held")
            refused = http.post("/v1/tasks/bulk", content=body, headers={"Content-Type": "application/json"})
            assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
            assert int(refused.headers["retry-after"]) > 0
            assert http.post("/v1/tasks/bulk", json={"tasks": []}).status_code == 201
            held.sendall(body[-1:])
            assert b"HTTP/1.1 201 " in held.recv(65536)
            again = http.post("/v1/tasks/bulk", content=body, headers={"Content-Type": "application/json"})
            assert again.status_code == 201


def test_a_body_that_would_never_fit_is_too_large(settings: Settings, database: object) -> None:
    dense = b'{"tasks": [' + b",".join([b"[]"] * 60_000) + b"]}"
    with started(settings, api_memory_bytes=3 << 20) as api, api.http() as http:
        refused = http.post("/v1/tasks/bulk", content=dense, headers={"Content-Type": "application/json"})
        assert (refused.status_code, refused.json()["code"]) == (413, "too_large")
        assert "MINION_API_MEMORY_BYTES" in refused.json()["detail"]


def test_memory_is_released_however_a_request_ends(settings: Settings, database: object) -> None:
    body = b" " * 300_000
    with started(settings, api_memory_bytes=3 << 20, api_request_seconds=SOON) as api:
        with api.http() as http:
            assert http.post("/v1/tasks/bulk", content=body).status_code == 415
            assert http.post("/v1/tasks/bulk", content=body + b"{", headers={"Content-Type": "a/b+json"}).is_error
        with connect(api) as half:
            half.sendall(bulk_head(api, len(body)) + body[:-1])
            read_all(half)
        with connect(api) as gone:
            gone.sendall(bulk_head(api, len(body)) + body[:-1])
        memory = api.app.state.body_memory
        wait_until(lambda: memory.used == 0, "the memory given back")


def test_a_short_key_is_refused_at_the_start(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINION_API_KEY", "k" * 15)
    with pytest.raises(NotConfigured, match="at least 16 characters") as refused:
        create_app(Settings())
    assert "k" * 15 not in refused.value.message
    monkeypatch.setenv("MINION_ALLOW_SHORT_API_KEY", "1")
    create_app(Settings())
    monkeypatch.setenv("MINION_ALLOW_SHORT_API_KEY", "0")
    monkeypatch.setenv("MINION_API_KEY", "k" * 16)
    create_app(Settings())


def test_client_reuses_kept_alive_connection(impatient: Api) -> None:
    with httpx2.Client(base_url=impatient.url, trust_env=False) as http:
        for _ in range(3):
            assert http.get("/healthz").status_code == 200
            time.sleep(1.2 * SOON)
