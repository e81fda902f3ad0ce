"""Submitting over HTTP: accepted requests, idempotency, and the texts of refusals."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from sqlalchemy import Engine, text

pytestmark = pytest.mark.usefixtures("agents")

WITH_IMAGE = {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image"}]}
JSON = {"Content-Type": "application/json"}


def count(database: Engine) -> int:
    with database.connect() as connection:
        return int(connection.scalar(text("SELECT count(*) FROM tasks")) or 0)


def refused(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The problem in a response, which must be one of RFC 9457."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["type"] == f"/problems/{code}"
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["title"]
    assert problem["detail"]
    assert "Traceback" not in response.text
    return problem


def test_a_task_is_created(http: httpx2.Client) -> None:
    request = {"agent": "Echo", "input": {"text": "ä"}, "labels": {"team": "a"}, "key": "tenant", "priority": 5}
    response = http.post("/v1/tasks", json=request)
    assert response.status_code == 201
    task = response.json()
    assert response.headers["location"] == f"/v1/tasks/{task['id']}"
    assert {name: task[name] for name in request} == request
    assert (task["state"], task["capability"], task["agent_version"]) == ("pending", "echo", 1)
    assert (task["submitted_by"], task["root_id"], task["origin_id"]) == ("api", task["id"], task["id"])
    assert http.get(response.headers["location"]).json() == task


def test_agent_is_resolved_once_while_it_has_the_same_version(
    http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert http.post("/v1/tasks", json={"agent": "Search", "input": {"query": "cats"}}).status_code == 201
    monkeypatch.setattr("shared.tasks.submission.RESOLVE", None)
    task = http.post("/v1/tasks", json={"agent": "Search", "input": {"query": "dogs"}})
    assert (task.status_code, task.json()["agent_version"]) == (201, 1)


def test_new_version_of_a_known_agent_applies_to_the_next_task(http: httpx2.Client, define: Any) -> None:
    agent = {"kind": "agent", "name": "Search", "type": "function", "tool": "noop"}
    queries, names = ({"type": "object", "required": [name]} for name in ("query", "name"))
    by_query, by_name = ({"agent": "Search", "input": {name: "cats"}} for name in ("query", "name"))
    assert http.post("/v1/tasks", json=by_query).status_code == 201
    define({**agent, "input_schema": names, "config": {"capabilities": ["search"]}})
    problem = refused(http.post("/v1/tasks", json=by_query), 422, "invalid_input")
    assert "name" in problem["detail"]
    task = http.post("/v1/tasks", json=by_name)
    assert (task.status_code, task.json()["agent_version"]) == (201, 2)
    define({**agent, "input_schema": queries, "config": {"capabilities": ["search"]}})
    assert http.post("/v1/tasks", json=by_query).json()["agent_version"] == 3


def test_known_agent_that_is_disabled_is_refused(http: httpx2.Client, database: Engine) -> None:
    assert http.post("/v1/tasks", json={"agent": "Echo"}).status_code == 201
    with database.begin() as connection:
        connection.execute(text("UPDATE agents SET status = 'disabled' WHERE name = 'Echo'"))
    refused(http.post("/v1/tasks", json={"agent": "Echo"}), 409, "conflict")


def test_a_task_can_name_a_capability_or_send_messages(http: httpx2.Client) -> None:
    by_capability = http.post("/v1/tasks", json={"capability": "filter", "input": {"query": "cats"}}).json()
    assert (by_capability["agent"], by_capability["capability"]) == ("Search", "filter")
    by_message = http.post("/v1/tasks", json={"messages": [{"role": "user", "content": "Hello"}]}).json()
    assert by_message["agent"] is None
    assert by_message["messages"] == [{"role": "user", "content": "Hello"}]


def test_same_key_and_payload_return_the_same_task(http: httpx2.Client, database: Engine) -> None:
    request = {"agent": "Echo", "input": {"n": 1}, "idempotency_key": "k"}
    first = http.post("/v1/tasks", json=request)
    again = http.post("/v1/tasks", json=request)
    by_header = http.post("/v1/tasks", json={"agent": "Echo", "input": {"n": 1}}, headers={"Idempotency-Key": "k"})
    assert (first.status_code, again.status_code, by_header.status_code) == (201, 200, 200)
    assert first.json()["id"] == again.json()["id"] == by_header.json()["id"]
    assert count(database) == 1


def test_another_payload_under_the_same_key_is_refused(http: httpx2.Client, database: Engine) -> None:
    task = http.post("/v1/tasks", json={"agent": "Echo", "input": {"n": 1}, "idempotency_key": "k"}).json()
    problem = refused(
        http.post("/v1/tasks", json={"agent": "Echo", "input": {"n": 2}, "idempotency_key": "k"}),
        409,
        "idempotency_conflict",
    )
    assert task["id"] in problem["detail"]
    assert count(database) == 1


def test_same_key_returns_the_task_of_a_disabled_agent(http: httpx2.Client, database: Engine) -> None:
    asked = {"agent": "Echo", "input": 1, "idempotency_key": "k"}
    task = http.post("/v1/tasks", json=asked).json()["id"]
    with database.begin() as connection:
        connection.execute(text("UPDATE agents SET status = 'disabled'"))
    again = http.post("/v1/tasks", json=asked)
    assert (again.status_code, again.json()["id"]) == (200, task)
    many = http.post("/v1/tasks/bulk", json={"tasks": [asked, asked]}).json()["tasks"]
    assert many == [{"id": task, "created": False}] * 2
    refused(http.post("/v1/tasks", json={**asked, "idempotency_key": "other"}), 409, "conflict")


def test_two_different_idempotency_keys_are_refused(http: httpx2.Client) -> None:
    request = {"agent": "Echo", "idempotency_key": "a"}
    refused(http.post("/v1/tasks", json=request, headers={"Idempotency-Key": "b"}), 422, "invalid_input")


@pytest.mark.parametrize(
    ("request_", "status", "code", "says"),
    [
        ({"agent": "Nobody"}, 404, "unknown_agent", "'Nobody'"),
        ({"agent": "x\x01" * 50}, 404, "unknown_agent", "There is no agent"),
        ({"capability": "nothing"}, 404, "unknown_capability", "'nothing'"),
        ({"agent": "Echo", "capability": "search"}, 404, "unknown_capability", "it offers echo"),
        ({}, 422, "invalid_input", "Name an agent"),
        ({"agent": "Echo", "inputs": {}}, 422, "invalid_input", "inputs"),
        ({"agent": 7}, 422, "invalid_input", "agent"),
        ({"agent": "Echo", "priority": "high"}, 422, "invalid_input", "priority"),
        ({"agent": "Echo", "priority": 101}, 422, "invalid_input", "priority"),
        ({"agent": "Echo", "labels": {"a": 1}}, 422, "invalid_input", "labels.a"),
        ({"agent": "Echo", "run_at": "tomorrow"}, 422, "invalid_input", "run_at"),
        ({"agent": "Echo", "run_at": "2030-01-01T00:00:00"}, 422, "invalid_input", "timezone"),
        ({"agent": "Echo", "messages": []}, 422, "invalid_input", "empty"),
        ({"agent": "Echo", "messages": [{"role": "king", "content": "x"}]}, 422, "invalid_input", "role"),
        (
            {
                "agent": "Echo",
                "messages": [WITH_IMAGE],
            },
            422,
            "invalid_input",
            "messages[0].content[1].source: the source of a block of type 'image' must have one of the types",
        ),
        ({"agent": "Echo", "messages": "hello"}, 422, "invalid_input", "messages"),
        ({"agent": "Echo", "traceparent": "00-x"}, 422, "invalid_input", "traceparent"),
        ({"agent": "Echo", "idempotency_key": ""}, 422, "invalid_input", "idempotency_key"),
        ({"agent": "Echo", "idempotency_key": "k" * 256}, 422, "invalid_input", "idempotency_key"),
        ([], 422, "invalid_input", "not a JSON object"),
        ("text", 422, "invalid_input", "not a JSON object"),
        (None, 422, "invalid_input", "not a JSON object"),
    ],
)
def test_a_wrong_request_is_refused(
    http: httpx2.Client, database: Engine, request_: Any, status: int, code: str, says: str
) -> None:
    problem = refused(http.post("/v1/tasks", content=json.dumps(request_), headers=JSON), status, code)
    assert says in problem["detail"]
    assert count(database) == 0


def test_all_violations_are_named_with_their_paths(http: httpx2.Client, database: Engine) -> None:
    wrong = {"query": "x", "limit": "many", "other": 1}
    problem = refused(http.post("/v1/tasks", json={"agent": "Search", "input": wrong}), 422, "invalid_input")
    assert {fault["path"] for fault in problem["violations"]} == {"$", "$.limit", "$.query"}
    assert all(fault["message"] in problem["detail"] for fault in problem["violations"])
    assert count(database) == 0


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b"{", "line 1 column 2"),
        (b'{"agent": "Echo",}', "JSON"),
        (b'{"agent": "Echo"} {}', "Extra data"),
        (b"\xff\xfe{}", "UTF-8"),
        (b'{"agent": "Echo", "input": "\xed\xa0\x80"}', "UTF-8"),
        (b'{"agent": "Echo", "input": "\\ud800"}', "surrogate"),
        (b'{"agent": "Echo", "input": {"\\udc00": 1}}', "surrogate"),
        (b'{"agent": "Echo", "input": "\\u0000"}', "U+0000"),
        (b'{"agent": "Echo", "input": {"a\\u0000b": 1}}', "U+0000"),
        (b'{"agent": "Ec\\u0000ho"}', "U+0000"),
        (b'{"agent": "Echo", "idempotency_key": "\\u0000"}', "U+0000"),
        (b'{"agent": "Echo", "input": NaN}', "NaN"),
        (b'{"agent": "Echo", "input": [-Infinity]}', "Infinity"),
        (b'{"agent": "Echo", "input": 1e999}', "not a JSON number"),
        (b'{"agent": "Echo", "input": ' + b"9" * 400 + b"}", "digits"),
        (b'{"agent": "Echo", "input": ' + b"9" * 5000 + b"}", "JSON"),
        (b'{"agent": "Echo", "input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested deeper"),
        (b'{"agent": "Echo", "input": ' + b'{"a":' * 200 + b"1" + b"}" * 200 + b"}", "nesting deeper"),
        (b"[" * 1_000_000, "nested deeper"),
        (b'{"agent": "Echo", "agent": "Search"}', "twice"),
        (b'{"agent": "Echo", "input": {"a": 1, "a": 2}}', "twice"),
        (b"\x00" * 100, "JSON"),
    ],
    ids=range(23),
)
def test_input_that_is_not_strict_json_is_refused(
    http: httpx2.Client, database: Engine, body: bytes, says: str
) -> None:
    problem = refused(http.post("/v1/tasks", content=body, headers=JSON), 422, "invalid_input")
    assert says in problem["detail"]
    assert len(problem["detail"]) < 1000
    assert count(database) == 0


@pytest.mark.parametrize("media_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_body_that_does_not_say_it_is_json_is_refused(http: httpx2.Client, media_type: str | None) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    problem = refused(
        http.post("/v1/tasks", content=b'{"agent": "Echo"}', headers=headers), 415, "unsupported_media_type"
    )
    assert "Content-Type: application/json" in problem["detail"]


def test_a_compressed_body_is_refused(http: httpx2.Client) -> None:
    headers = {**JSON, "Content-Encoding": "gzip"}
    refused(http.post("/v1/tasks", content=b"x", headers=headers), 415, "unsupported_media_type")


@pytest.mark.parametrize("media_type", ["application/json; charset=utf-8", "Application/JSON", "application/x+json"])
def test_json_has_several_names(http: httpx2.Client, media_type: str) -> None:
    sent = http.post("/v1/tasks", content=b'{"agent": "Echo"}', headers={"Content-Type": media_type})
    assert sent.status_code == 201


def test_input_is_null_only_if_it_was_sent_as_null(http: httpx2.Client) -> None:
    assert http.post("/v1/tasks", json={"agent": "Echo"}).json()["input"] == {}
    assert http.post("/v1/tasks", json={"agent": "Echo", "input": None}).json()["input"] is None


@pytest.mark.parametrize(
    "value", [0, -1.5, 1e22, 2**63, "😀\u2028\x7f", [], [[None, True]], {"": {"a.b": 1}}, "x" * 1_000_000]
)
def test_any_json_is_returned_unchanged(http: httpx2.Client, value: Any) -> None:
    task = http.post("/v1/tasks", json={"agent": "Echo", "input": value}).json()
    assert http.get(f"/v1/tasks/{task['id']}").json()["input"] == value


def test_bulk_keeps_the_order(http: httpx2.Client, database: Engine) -> None:
    requests = [{"agent": "Echo", "input": n, "idempotency_key": str(n % 8)} for n in range(8)]
    first = http.post("/v1/tasks/bulk", json={"tasks": requests[:4]})
    assert first.status_code == 201
    both = http.post("/v1/tasks/bulk", json={"tasks": requests}).json()["tasks"]
    assert [task["created"] for task in both] == [False] * 4 + [True] * 4
    assert [task["id"] for task in both[:4]] == [task["id"] for task in first.json()["tasks"]]
    inputs = [http.get(f"/v1/tasks/{task['id']}").json()["input"] for task in both]
    assert inputs == list(range(8))
    assert http.post("/v1/tasks/bulk", json={"tasks": []}).json() == {"tasks": []}


@pytest.mark.parametrize(
    ("wrong", "status", "code"),
    [
        ({"agent": "Nobody"}, 404, "unknown_agent"),
        ({"agent": "Search", "input": {}}, 422, "invalid_input"),
        ({"agent": "Echo", "color": "red"}, 422, "invalid_input"),
        ({"agent": "Echo", "input": "x" * 1_100_000}, 413, "too_large"),
        ({"agent": "Echo", "input": 2, "idempotency_key": "k"}, 409, "idempotency_conflict"),
        ("Echo", 422, "invalid_input"),
    ],
)
def test_bulk_is_all_or_nothing(http: httpx2.Client, database: Engine, wrong: Any, status: int, code: str) -> None:
    good = {"agent": "Echo", "input": 1}
    requests = [{**good, "idempotency_key": "k"}, *[good] * 6, wrong, good]
    problem = refused(http.post("/v1/tasks/bulk", json={"tasks": requests}), status, code)
    assert count(database) == 0
    if code != "idempotency_conflict":  # that one is found by the insert itself
        assert problem["index"] == 7
        assert "tasks[7]: " in problem["detail"]


@pytest.mark.parametrize("body", [{}, {"tasks": {}}, {"tasks": [], "more": 1}, [], {"tasks": [{}] * 10_001}])
def test_a_wrong_bulk_request_is_refused(http: httpx2.Client, body: Any) -> None:
    refused(http.post("/v1/tasks/bulk", json=body), 422, "invalid_input")


def test_ten_thousand_tasks_are_one_request(http: httpx2.Client, database: Engine) -> None:
    requests = [{"agent": "Search", "input": {"query": f"cats {n}", "limit": n + 1}} for n in range(10_000)]
    response = http.post("/v1/tasks/bulk", json={"tasks": requests})
    assert response.status_code == 201
    assert len({task["id"] for task in response.json()["tasks"]}) == 10_000
    assert count(database) == 10_000


def test_a_capability_of_several_agents_needs_a_name(http: httpx2.Client, define: Any) -> None:
    define({"kind": "agent", "name": "Other", "type": "function", "tool": "noop", "config": {"capabilities": ["echo"]}})
    problem = refused(http.post("/v1/tasks", json={"capability": "echo"}), 422, "ambiguous_route")
    assert "Echo, Other" in problem["detail"]


def test_disabled_agent_accepts_no_task(http: httpx2.Client, database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(text("UPDATE agents SET status = 'disabled' WHERE name = 'Echo'"))
    refused(http.post("/v1/tasks", json={"agent": "Echo"}), 409, "conflict")


def test_bulk_looks_in_each_tasks_own_namespace(http: httpx2.Client, database: Engine) -> None:
    requests = [{"agent": "Echo"}, {"agent": "Echo", "namespace": "elsewhere"}]
    problem = refused(http.post("/v1/tasks/bulk", json={"tasks": requests}), 404, "unknown_agent")
    assert problem["index"] == 1
    assert count(database) == 0
