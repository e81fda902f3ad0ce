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


async def until_ended(client: McpClient, task_id: str) -> dict[str, Any]:
    while True:
        found = await ask(client, "tasks/get", taskId=task_id)
        if found["status"] in ("completed", "failed", "cancelled"):
            return found
        await asyncio.sleep(0.05)


async def asked(client: McpClient, task_id: str) -> dict[str, Any]:
    """Return the task once it asks for input."""
    while (found := await ask(client, "tasks/get", taskId=task_id))["status"] == "working":
        await asyncio.sleep(0.05)
    assert found["status"] == "input_required", found
    return found


async def ignored(context: Any, params: Any) -> ElicitResult:
    raise AssertionError("tasks carry their forms")


def test_long_call_is_a_task_for_a_client_with_tasks(act: Any, connect: Any) -> None:
    act("Acts", input_schema=SCHEMA)

    async def main() -> None:
        async with connect(tasks=True, mode="2026-07-28") as client:
            created = await client.session.call_tool("Acts", {"do": "sleep", "seconds": 2.5}, allow_claimed=True)
            found = created.model_dump(by_alias=True)
            assert (found["resultType"], found["status"]) == ("task", "working")
            assert isinstance(found["ttlMs"], int) and found["pollIntervalMs"] == 1000
            assert "running" in found["statusMessage"]
            ended = await until_ended(client, found["taskId"])
            assert ended["result"]["structuredContent"] == {"slept": 2.5}

    run(main())


def test_approval_is_a_form_and_its_answer_a_decision(act: Any, connect: Any, tasks: Tasks, client: Client) -> None:
    act("Acts", input_schema=SCHEMA, effect="unsafe", config={"approval": True})

    async def main() -> str:
        async with connect(tasks=True, mode="2026-07-28", elicitation_callback=ignored) as mcp:
            created = await mcp.session.call_tool("Acts", {"do": "answer", "answer": "no"}, allow_claimed=True)
            found = await asked(mcp, created.model_dump()["taskId"])
            ((key, form),) = found["inputRequests"].items()
            assert form["method"] == "elicitation/create"
            assert form["params"]["requestedSchema"]["properties"]["argument.answer"]["default"] == "no"
            answer = {"action": "accept", "content": {"argument.answer": "yes", "reason": "Looks good."}}
            assert await ask(mcp, "tasks/update", taskId=found["taskId"], inputResponses={"1-000000000000-0": answer})
            await ask(mcp, "tasks/update", taskId=found["taskId"], inputResponses={key: answer})
            ended = await until_ended(mcp, found["taskId"])
            assert ended["result"]["content"][0]["text"] == "yes"
            return found["taskId"]

    task_id = run(main())
    decided = next(entry for entry in client.audit() if entry["act"] == "task.decide")
    assert decided["after"]["verdict"] == "approve" and decided["after"]["replaced"]
    assert client.get(task_id).succeeded
