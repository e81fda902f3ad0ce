"""When the client retries, and when it must not: against a server that fails to order."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from minions import Client, errors

TASK = {
    "id": str(uuid4()),
    "agent": "Echo",
    "state": "pending",
    "created_at": "2026-01-01T00:00:00Z",
    "labels": {},
    "root_id": str(uuid4()),
    "invented_later": True,
}
PROBLEM = {"type": "/problems/unavailable", "title": "t", "status": 503, "detail": "Not now.", "code": "unavailable"}
DROP = "drop"  # the request arrives, the connection breaks before the answer

Answer = tuple[int, Any] | str


class Server(ThreadingHTTPServer):
    """Server that gives the listed answers and records the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Answer] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.last_ids: list[str | None] = []
        self.keys: list[str | None] = []
        self.headers: dict[str, str] = {}


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, json.loads(body or b"{}")))
        self.server.last_ids.append(self.headers["Last-Event-ID"])
        self.server.keys.append(self.headers["Authorization"])
        answer = self.server.answers.pop(0)
        if isinstance(answer, str):
            self.close_connection = True
            return
        status, content = answer
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(text)), **self.server.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    do_POST = do_PUT = do_GET

    def log_message(self, *arguments: Any) -> None:
        """Log nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{server.server_port}", "key", retries=2) as client:
        yield client


@pytest.mark.parametrize("fault", [(503, PROBLEM), (502, b"<html>"), (504, b""), (429, {}), DROP])
def test_submit_is_retried_with_the_same_key(server: Server, client: Client, fault: Answer) -> None:
    server.answers = [fault, fault, (201, TASK)]
    assert client.submit("Echo", {"n": 1}).id == TASK["id"]
    assert len(server.asked) == 3
    assert len({request["idempotency_key"] for _, request in server.asked}) == 1


def test_line_end_is_no_part_of_the_key(server: Server) -> None:
    server.answers = [(200, TASK)]
    with Client(f"http://127.0.0.1:{server.server_port}", "s3cret\n") as client:
        client.get(uuid4())
    assert server.keys == ["Bearer s3cret"]


@pytest.mark.parametrize("key", ["s3c\nret", "s3c\rret", "s3cr\u00e9t", "\n", " "])
def test_key_that_no_header_can_carry_is_refused_and_not_quoted(key: str) -> None:
    with pytest.raises(errors.NotConfigured, match="printable ASCII") as refused:
        Client("http://127.0.0.1:1", key)
    assert "s3c" not in refused.value.message


def test_caller_s_idempotency_key_is_kept(server: Server, client: Client) -> None:
    server.answers = [(201, TASK)]
    client.submit("Echo", idempotency_key="mine")
    assert server.asked == [("/v1/tasks", {"agent": "Echo", "idempotency_key": "mine"})]


def test_bulk_submit_is_retried_with_the_same_keys(server: Server, client: Client) -> None:
    server.answers = [DROP, (201, {"tasks": [{"id": "a"}, {"id": "b"}]})]
    assert client.submit_many([{"agent": "Echo"}, {"agent": "Echo", "idempotency_key": "mine"}]) == ["a", "b"]
    first, second = (request for _, request in server.asked)
    assert first == second
    assert first["tasks"][1]["idempotency_key"] == "mine"


@pytest.mark.parametrize(
    ("name", "part"), [(".", "%2E"), ("..", "%2E%2E"), ("...", "..."), ("../x", "..%2Fx"), ("a.b ?#", "a.b%20%3F%23")]
)
def test_any_name_stays_one_segment_of_the_path(server: Server, client: Client, name: str, part: str) -> None:
    server.answers = [(200, TASK)] * 3
    client.signal("id", name)
    client.pause(name, name)
    client.get(name)
    assert [path for path, _ in server.asked] == [
        f"/v1/tasks/id/signals/{part}",
        f"/v1/pauses/{part}/{part}",
        f"/v1/tasks/{part}",
    ]


@pytest.mark.parametrize("fault", [(503, PROBLEM), DROP])
def test_replay_is_not_retried(server: Server, client: Client, fault: Answer) -> None:
    server.answers = [fault]
    with pytest.raises(errors.Unavailable):
        client.replay(uuid4())
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 500])
def test_permanent_errors_are_not_retried(server: Server, client: Client, status: int) -> None:
    server.answers = [(status, {"detail": "No."})]
    with pytest.raises(errors.MinionsError, match=r"No\.") as caught:
        client.get(uuid4())
    assert caught.value.status == status
    assert len(server.asked) == 1


def test_last_error_is_raised_after_all_attempts(server: Server, client: Client) -> None:
    server.answers = [DROP, DROP, (503, PROBLEM)]
    with pytest.raises(errors.Unavailable, match=r"Not now\."):
        client.get(uuid4())


def test_retry_after_is_respected(server: Server, client: Client) -> None:
    server.headers = {"Retry-After": "1"}
    server.answers = [(503, PROBLEM), (200, TASK)]
    began = time.monotonic()
    client.get(uuid4())
    assert time.monotonic() - began >= 1


def test_broken_stream_is_resumed(server: Server, client: Client) -> None:
    server.headers = {"Content-Type": "text/event-stream", "Content-Length": "100000", "Connection": "close"}
    begun = b'retry: 1\n\nid: 1\nevent: task.accepted\ndata: {}\n\nevent: step.text\ndata: {"text": "a"}\n\n'
    server.answers = [
        (200, begun + b"id: 2\nevent: task.running\ndata: {}\n"),  # not yet at its end
        DROP,
        (200, b"retry: 1\n\n: nothing new\n\n"),
        DROP,
        (200, b"id: 2\nevent: task.running\ndata: {}\n\nid: 3\nevent: task.failed\ndata: {}\n\n"),
    ]
    told = [(event.id, event.type, event.final) for event in client.follow(TASK["id"])]
    assert told == [
        (1, "task.accepted", False),
        (None, "step.text", False),
        (2, "task.running", False),
        (3, "task.failed", True),
    ]
    assert server.last_ids == ["0", "1", "1", "1", "1"]


@pytest.mark.parametrize("status", [401, 404, 422])
def test_refused_stream_is_an_error(server: Server, client: Client, status: int) -> None:
    server.answers = [(status, {"detail": "No."})]
    with pytest.raises(errors.MinionsError, match=r"No\."):
        list(client.follow(TASK["id"]))


def test_stream_without_further_events_is_empty(server: Server, client: Client) -> None:
    server.answers = [(204, b"")]
    assert list(client.follow(TASK["id"], after=3)) == []


@pytest.mark.parametrize("body", [b"<html>", b"", b"\xff"])
def test_non_json_answer_is_an_error(server: Server, client: Client, body: bytes) -> None:
    server.answers = [(200, body)]
    with pytest.raises(errors.ServerError, match="did not answer with JSON"):
        client.get(uuid4())


def test_fields_of_a_later_release_are_ignored(server: Server, client: Client) -> None:
    server.answers = [(200, TASK)]
    assert not hasattr(client.get(uuid4()), "invented_later")


def test_unknown_problem_keeps_its_code() -> None:
    error = errors.from_problem(418, {"code": "teapot", "detail": "Short and stout.", "spout": 1})
    assert (type(error), error.code, error.detail) == (errors.MinionsError, "teapot", {"spout": 1})


def test_key_is_read_from_a_file(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text("a-key-from-a-file\n")
    monkeypatch.delenv("MINION_API_KEY", raising=False)
    monkeypatch.setenv("MINION_API_KEY_FILE", str(file))
    server.answers = [(200, TASK)]
    with Client(f"http://127.0.0.1:{server.server_address[1]}") as client:
        client.get(TASK["id"])
    assert server.keys == ["Bearer a-key-from-a-file"]


@pytest.mark.parametrize(
    ("content", "key", "words"),
    [
        ("k", "another", "MINION_API_KEY and MINION_API_KEY_FILE are both set: set one of them"),
        (None, None, r"MINION_API_KEY_FILE: the file .*key cannot be read"),
        (b"\xff", None, r"MINION_API_KEY_FILE: the file .*key cannot be read"),
        (" \n", None, r"MINION_API_KEY_FILE: the file .*key is empty"),
    ],
)
def test_unusable_key_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, key: str | None, words: str
) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setenv("MINION_API_KEY", key or "")
    monkeypatch.setenv("MINION_API_KEY_FILE", str(file))
    with pytest.raises(errors.NotConfigured, match=words):
        Client("http://127.0.0.1:1")
    Client("http://127.0.0.1:1", "an argument").close()
