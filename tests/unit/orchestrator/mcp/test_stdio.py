"""The bridge for desktop clients, while no orchestrator answers."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from minions.aio.transport import AsyncTransport
from minions.errors import Unavailable
from orchestrator.mcp.api import Api
from orchestrator.mcp.stdio import RETRIES


def test_bridge_retries_for_about_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("minions.aio.transport.asyncio", SimpleNamespace(sleep=pause))  # other threads sleep too
    api = Api(AsyncTransport("http://127.0.0.1:1", "mk_key", timeout=1.0, retries=RETRIES))
    with pytest.raises(Unavailable, match="cannot be reached"):
        asyncio.run(api.access())
    assert 20 < sum(pauses) < 45
