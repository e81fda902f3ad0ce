"""The MCP server over HTTP, with the reference client in both eras of the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import httpx2
import pytest
from mcp import Client as McpClient
from mcp_types import ElicitResult

from minions import Client
from tests.integration.api.conftest import Api
from tests.integration.conftest import Tasks
from tests.support.mcp_client import ask, mcp_client

SCHEMA = {"type": "object", "properties": {"do": {"type": "string"}, "answer": {"type": "string"}}}
ERAS = pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])


@pytest.fixture(autouse=True)
def _running(loops: None, worker: Any) -> None:
    """The loops and a worker."""


@pytest.fixture
def connect(http_api: Api) -> Callable[..., Any]:
    """Connects the reference client: `async with connect(mode="legacy") as client`."""
    return lambda key=http_api.key, **options: mcp_client(http_api.url, key, **options)


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(main)


@ERAS
def test_agent_is_a_tool_and_answers(act: Any, connect: Any, mode: str) -> None:
    act("Acts", description="Acts.", input_schema=SCHEMA, output_schema={"type": "object"})

    async def main() -> None:
        async with connect(mode=mode) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert {"Acts", "get_task", "why", "dead_letters"} <= tools.keys()
            assert tools["Acts"].input_schema["properties"] == SCHEMA["properties"]
            assert tools["Acts"].annotations.idempotent_hint and not tools["Acts"].annotations.destructive_hint
            result = await client.call_tool("Acts", {"do": "answer"})
            assert result.structured_content == {"attempt": 1}
            assert result.content[0].text == '{"attempt": 1}'

    run(main())
