"""Callers' traces, by every entry point: a valid one is stored with the task, an invalid header is ignored."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import httpx2
import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from sqlalchemy import Engine, text

from minions import Client
from orchestrator.replay import replay
from shared.tasks import lifecycle

pytestmark = pytest.mark.usefixtures("agents")

TRACE, SPAN = "a" * 32, "b" * 16
CALLER = f"00-{TRACE}-{SPAN}-01"
OTHER = f"00-{'c' * 32}-{'d' * 16}-01"
ECHO = {"agent": "Echo", "input": {"n": 1}}
BAD = ["", "x", f"00-{'0' * 32}-{SPAN}-01", f"ff-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01-x"]


def post(http: httpx2.Client, headers: Any, **fields: Any) -> Any:
    response = http.post("/v1/tasks", json={**ECHO, **fields}, headers=headers)
    assert response.status_code == 201
    return response.json()["traceparent"]


def test_header_is_stored_with_the_task(http: httpx2.Client) -> None:
    assert post(http, {"traceparent": CALLER}) == CALLER
    assert post(http, {"Traceparent": f"cc-{TRACE}-{SPAN}-01-later"}) == CALLER
    assert post(http, {}) is None


def test_field_takes_precedence_over_the_header(http: httpx2.Client) -> None:
    assert post(http, {"traceparent": CALLER}, traceparent=OTHER) == OTHER


@pytest.mark.parametrize("header", BAD)
def test_invalid_header_is_ignored(http: httpx2.Client, header: str) -> None:
    assert post(http, {"traceparent": header}) is None


def test_several_headers_are_ignored(http: httpx2.Client) -> None:
    assert post(http, [("traceparent", CALLER), ("traceparent", OTHER)]) is None


def test_repetition_in_another_trace_is_the_same_task(http: httpx2.Client) -> None:
    request = {**ECHO, "idempotency_key": "k"}
    first = http.post("/v1/tasks", json=request, headers={"traceparent": CALLER})
    again = http.post("/v1/tasks", json=request, headers={"traceparent": OTHER})
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["id"] == first.json()["id"]
    assert again.json()["traceparent"] == CALLER


def test_bulk_tasks_have_the_header_or_their_own_field(http: httpx2.Client) -> None:
    tasks = [ECHO, {**ECHO, "traceparent": OTHER}]
    made = http.post("/v1/tasks/bulk", json={"tasks": tasks}, headers={"traceparent": CALLER}).json()["tasks"]
    assert [http.get(f"/v1/tasks/{each['id']}").json()["traceparent"] for each in made] == [CALLER, OTHER]


def test_client_continues_the_current_span(client: Client) -> None:
    span = NonRecordingSpan(SpanContext(int(TRACE, 16), int(SPAN, 16), False, TraceFlags(TraceFlags.SAMPLED)))
    with trace.use_span(span):
        task = client.submit("Echo", {"n": 1})
        [many] = client.submit_many([{"agent": "Echo", "input": {"n": 2}}])
        named = client.submit("Echo", {"n": 3}, traceparent=OTHER)
    found = [client.get(each).traceparent for each in (task, many, named)]
    assert found == [CALLER, CALLER, OTHER]
    assert client.get(client.submit("Echo", {"n": 4})).traceparent is None


def test_sql_caller_names_its_span(http: httpx2.Client, database: Engine) -> None:
    with database.begin() as connection:
        task = connection.scalar(
            text("SELECT minion_submit('Echo', '{\"n\": 1}', traceparent => :caller)"), {"caller": CALLER}
        )
    assert http.get(f"/v1/tasks/{task}").json()["traceparent"] == CALLER


def test_replay_is_a_new_trace(http: httpx2.Client, database: Engine) -> None:
    task = UUID(http.post("/v1/tasks", json=ECHO, headers={"traceparent": CALLER}).json()["id"])
    with database.begin() as connection:
        lifecycle.cancel(connection, task, reason="test")
        again = replay(connection, task, pinned=False, submitted_by="test").task_id
    assert http.get(f"/v1/tasks/{again}").json()["traceparent"] is None
