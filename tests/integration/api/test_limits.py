"""Large, lying and broken requests, over plain sockets where an HTTP client would not send them."""

from __future__ import annotations

import json
import socket
import tracemalloc
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from sqlalchemy import Engine, text

from .conftest import Api

pytestmark = pytest.mark.usefixtures("agents")

JSON = {"Content-Type": "application/json"}
MEGABYTE = 1 << 20


def exchange(http_api: Api, *chunks: bytes, hang_up: bool = False) -> bytes:
    """Sends bytes, and returns what comes back until the server closes or is silent."""
    with socket.create_connection(("127.0.0.1", http_api.port), timeout=5) as connection:
        for chunk in chunks:
            connection.sendall(chunk)
        if hang_up:
            return b""
        answer = b""
        try:
            while not (b"\r\n\r\n" in answer and answer.endswith((b"}", b"received."))):
                if not (received := connection.recv(65536)):
                    break
                answer += received
        except TimeoutError:
            pass
        return answer


def head(http_api: Api, *headers: str, path: str = "/v1/tasks") -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {http_api.key}",
        "Content-Type: application/json",
    ]
    return "\r\n".join([*lines, *headers, "", ""]).encode()


def count(database: Engine) -> int:
    with database.connect() as connection:
        return int(connection.scalar(text("SELECT count(*) FROM tasks")) or 0)


def test_twenty_megabytes_of_input_are_refused(http: httpx2.Client, database: Engine) -> None:
    response = http.post("/v1/tasks", json={"agent": "Echo", "input": "x" * 20 * MEGABYTE})
    assert response.status_code == 413
    assert response.json()["code"] == "too_large"
    assert count(database) == 0


@pytest.mark.parametrize("form", ['"%s"', '["%s"]', '{"%s": 1}'])
def test_a_little_too_much_input_is_refused(http: httpx2.Client, database: Engine, form: str) -> None:
    value = form % ("x" * MEGABYTE)
    for body in ('{"agent": "Echo", "input": %s}', '{"agent": "Echo", "messages": [{"role": "user", "content": %s}]}'):
        response = http.post("/v1/tasks", content=body % value, headers=JSON)
        assert response.status_code in (413, 422)
    response = http.post("/v1/tasks", content=f'{{"agent": "Echo", "input": {value}}}', headers=JSON)
    assert (response.status_code, response.json()["code"]) == (413, "too_large")
    assert "1,048,576" in response.json()["detail"]
    assert count(database) == 0


def test_escapes_do_not_count(http: httpx2.Client) -> None:
    body = '{"agent": "Echo", "input": "' + "\\u00e4" * 500_000 + '"}'
    assert http.post("/v1/tasks", content=body, headers=JSON).status_code == 201


def test_body_of_unknown_length_is_counted_not_stored(http: httpx2.Client) -> None:
    def endless() -> Iterator[bytes]:
        yield b'{"agent": "Echo", "input": "'
        for _ in range(200):
            yield b"x" * MEGABYTE

    tracemalloc.start()  # the server is a thread of this process
    try:
        response = http.post("/v1/tasks", content=endless(), headers=JSON)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert response.status_code == 413
    assert peak < 40 * MEGABYTE


def test_body_announced_too_large_is_refused_early(http_api: Api, database: Engine) -> None:
    for length in ("20971520", "9" * 19):
        answer = exchange(http_api, head(http_api, f"Content-Length: {length}"))
        assert b" 413 " in answer.splitlines()[0], answer
        assert b"application/problem+json" in answer


def test_body_shorter_than_announced_creates_no_task(http_api: Api, http: httpx2.Client, database: Engine) -> None:
    exchange(http_api, head(http_api, "Content-Length: 1000"), b'{"agent": "Echo"}', hang_up=True)
    assert http.get("/healthz").status_code == 200
    assert count(database) == 0


def test_a_body_longer_than_announced_is_cut(http_api: Api, database: Engine) -> None:
    answer = exchange(http_api, head(http_api, "Content-Length: 5"), b'{"agent": "Echo"}')
    assert b" 422 " in answer.splitlines()[0], answer
    assert count(database) == 0


@pytest.mark.parametrize("length", ["-1", "abc", "1, 2", "1e3"])
def test_a_length_that_is_no_number_is_refused(http_api: Api, database: Engine, length: str) -> None:
    answer = exchange(http_api, head(http_api, f"Content-Length: {length}"), b"{}")
    assert b" 400 " in answer.splitlines()[0], answer
    assert count(database) == 0


def test_non_http_bytes_are_refused(http_api: Api, http: httpx2.Client) -> None:
    for rubbish in (
        b"\x16\x03\x01\x02\x00",
        b"GET\r\n\r\n",
        b"POST /v1/tasks HTTP/9.9\r\n\r\n",
        b"\x00" * 100 + b"\r\n\r\n",
    ):
        exchange(http_api, rubbish, hang_up=True)
    assert http.get("/healthz").status_code == 200


def test_endless_headers_are_refused(http_api: Api, http: httpx2.Client) -> None:
    answer = exchange(http_api, head(http_api, f"X-Long: {'x' * 200_000}"))
    assert b" 400 " in answer[:20] or b" 431 " in answer[:20]


def test_the_bulk_limit_is_larger(http: httpx2.Client, database: Engine) -> None:
    tasks = [{"agent": "Echo", "input": "x" * 900_000} for _ in range(20)]
    assert http.post("/v1/tasks/bulk", content=json.dumps({"tasks": tasks}), headers=JSON).status_code == 201
    assert count(database) == 20
    too_much = b'{"tasks": ["' + b"x" * (65 * MEGABYTE) + b'"]}'
    assert http.post("/v1/tasks/bulk", content=too_much, headers=JSON).status_code == 413


def test_small_posts_have_the_same_limit(http: httpx2.Client) -> None:
    task = http.post("/v1/tasks", json={"agent": "Echo"}).json()["id"]
    body: dict[str, Any] = {"reason": "x" * 10 * MEGABYTE}
    assert http.post(f"/v1/tasks/{task}/cancel", json=body).status_code == 413
    assert http.post(f"/v1/tasks/{task}/cancel", json={"reason": "x" * 501}).status_code == 422
