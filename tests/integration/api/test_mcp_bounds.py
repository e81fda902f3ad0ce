"""The bounds of the MCP server: quotas, streams, large calls, and the namespace that an address chooses."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import pytest
from sqlalchemy import Engine

from orchestrator.mcp import own_tools, server
from tests.integration.api.conftest import WithKey
from tests.integration.api.test_boundaries import define_in
from tests.integration.api.test_mcp import headers_of, request

SCHEMA = {"type": "object"}


def ask(http: httpx2.Client, method: str, path: str = "/mcp", **params: Any) -> httpx2.Response:
    body = request(method, **params)
    return http.post(path, json=body, headers=headers_of(body))


def tools_at(http: httpx2.Client, path: str) -> set[str]:
    return {tool["name"] for tool in ask(http, "tools/list", path).json()["result"]["tools"]}


def test_request_counts_once_towards_the_quota(with_key: WithKey) -> None:
    http = with_key("viewer", requests_per_minute=2)
    assert [ask(http, "tools/list").status_code for _ in range(3)] == [200, 200, 429]


def test_address_chooses_the_namespace(act: Any, database: Engine, http: httpx2.Client) -> None:
    act("Ours", input_schema=SCHEMA)
    noop = {"kind": "tool", "name": "noop", "type": "builtin", "builtin": "noop"}
    agent = {"kind": "agent", "name": "Theirs", "type": "function", "tool": "noop", "input_schema": SCHEMA}
    define_in(database, "team", noop, agent)
    assert {"Ours", "Theirs"} & tools_at(http, "/mcp") == {"Ours"}
    assert {"Ours", "Theirs"} & tools_at(http, "/mcp?namespace=team") == {"Theirs"}


def test_tools_come_in_pages(act: Any, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert server.PAGE == 100
    monkeypatch.setattr(server, "PAGE", 2)
    for name in ("A", "B", "C"):
        act(name, input_schema=SCHEMA)
    first = ask(http, "tools/list").json()["result"]
    rest = ask(http, "tools/list", cursor=first["nextCursor"]).json()["result"]
    assert [tool["name"] for tool in first["tools"]] == [*own_tools.BY_NAME, "A", "B"]
    assert ([tool["name"] for tool in rest["tools"]], "nextCursor" in rest) == (["C"], False)


@pytest.mark.parametrize("wanted", [["a"] * 51, "a", [1]])
def test_stream_of_too_many_tasks_is_refused(http: httpx2.Client, wanted: Any) -> None:
    refused = ask(http, "subscriptions/listen", notifications={"taskIds": wanted})
    assert "`taskIds` must be a list of at most 50 ids of tasks." in refused.text


def test_process_serves_no_more_streams_than_it_can(http: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.mcp.subscriptions.MOST_STREAMS", 0)
    refused = ask(http, "subscriptions/listen", notifications={"toolsListChanged": True})
    assert "may have 0 streams in a process, and this one has 0. Poll in place of it." in refused.text


def test_one_key_leaves_streams_to_others(
    http: httpx2.Client, with_key: WithKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.mcp.subscriptions.MOST_STREAMS", 4)

    def listening(client: httpx2.Client) -> AbstractContextManager[httpx2.Response]:
        body = request("subscriptions/listen", notifications={"toolsListChanged": True})
        return client.stream("POST", "/mcp", json=body, headers=headers_of(body))

    with listening(http) as first, listening(http) as second, listening(with_key("viewer")) as third:
        assert "acknowledged" in text_of(first)
        assert "One key may have 1 streams in a process, and this one has 1." in text_of(second)
        assert "acknowledged" in text_of(third)


def test_one_key_leaves_watched_tasks_to_others(http: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.mcp.subscriptions.MOST_WATCHED", 8)
    refused = ask(http, "subscriptions/listen", notifications={"taskIds": ["a", "b", "c"]})
    assert "One key may have 2 tasks in streams in a process, and this one has 0." in refused.text


def text_of(response: httpx2.Response) -> str:
    """Return what has arrived of a stream, up to its first message."""
    return next(line for line in response.iter_lines() if "jsonrpc" in line)


def test_large_call_does_not_wait_for_its_result(
    act: Any, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.mcp.calls.PATIENCE_SECONDS", 60.0)
    act("Acts", input_schema=SCHEMA)
    body = request("tools/call", name="Acts", arguments={"text": "x" * 66_000})
    body["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"] = {}
    began = time.monotonic()
    answer = http.post("/mcp", json=body, headers=headers_of(body), timeout=70).text
    assert "structuredContent" in answer
    assert "`get_task`" in answer
    assert time.monotonic() - began < 30
