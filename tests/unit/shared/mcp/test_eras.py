"""What a process knows about servers, and calls of many threads of the reference server in both eras."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shared.mcp import eras
from shared.mcp.client import McpClient
from shared.mcp.eras import Era, Eras, Known
from shared.mcp.http import FixedHeaders, HttpTransport
from shared.mcp.protocol import LEGACY, MODERN
from shared.settings import Settings
from tests.support.mcp_server import reference_server

SETTINGS = Settings(allow_private_addresses=["127.0.0.1"])


def test_era_is_shared_by_the_clients_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eras, "MOST", 2)
    known = Eras()
    first = known.of("a")
    assert known.of("a") is first
    known.of("b")
    known.of("c")
    assert known.of("a") is not first


def test_era_is_forgotten_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    era = Era(Known(MODERN, {}))
    assert era.recall() is era.known
    monkeypatch.setattr(eras, "MAX_AGE", -1.0)
    assert era.recall() is None


@pytest.mark.parametrize(("which", "version"), [("modern", MODERN), ("legacy", LEGACY)])
def test_threads_call_at_the_same_time(which: str, version: str) -> None:
    era = Era()

    def call(number: int) -> Any:
        transport = HttpTransport(
            shop.url, SETTINGS, seconds=20, max_bytes=1 << 20, authorization=FixedHeaders({"X-Key": "k"})
        )
        with McpClient(transport, era) as client:
            arguments = {"order": f"A-{number}"}
            return client.request("tools/call", {"name": "lookup_order", "arguments": arguments}, name="lookup_order")

    with reference_server(which, json_response=True) as shop, ThreadPoolExecutor(8) as threads:
        results = list(threads.map(call, range(24)))
        shop.forget_sessions()
        results += threads.map(call, range(24, 48))
    assert [result["structuredContent"]["order"] for result in results] == [f"A-{number}" for number in range(48)]
    assert era.known is not None
    assert era.known.version == version
    assert {headers["x-key"] for headers in shop.requests} == {"k"}
