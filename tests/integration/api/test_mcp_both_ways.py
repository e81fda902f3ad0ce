"""An agent that calls an agent of another installation: our MCP client and our MCP server, with tasks and questions."""

from __future__ import annotations

import asyncio

import pytest

from minions import Client
from tests.conftest import Define
from tests.integration.agents.test_remote_tasks import LISTED, Site, configured, site
from tests.integration.api.conftest import Api
from tests.integration.api.test_mcp import asked, ignored
from tests.integration.conftest import ACT
from tests.support.mcp_client import ask, mcp_client
from tests.support.processes import wait_until

__all__ = ["configured", "site"]
SCHEMA = {"type": "object", "properties": {"do": {"type": "string"}, "answer": {"type": "string"}}}


def test_agent_calls_another_installations_agent(
    site: Site, http_api: Api, client: Client, define: Define, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_api.app.state.mcp.server.calls, "_answer_seconds", 0.2)
    config = {"capabilities": ["work"]}
    server = {
        "kind": "mcp_server",
        "name": "other",
        "url": f"{http_api.url}/mcp",
        "headers": {"Authorization": f"Bearer {http_api.key}"},
    }
    agent = {"kind": "agent", "type": "function", "config": config}
    remote = {"server": "other", "tool": "Guarded", "listed": LISTED}
    define(
        {**ACT, "name": "guarded", "approval": True, "input_schema": SCHEMA},
        {**agent, "name": "Guarded", "tool": "guarded", "input_schema": SCHEMA},
        server,
        {"kind": "tool", "name": "remote", "type": "mcp", "mcp": remote},
        {**agent, "name": "Caller", "tool": "remote"},
    )
    task = site.submit("Caller", {"do": "answer", "answer": "yes"})
    assert site.state(task) == ("waiting", "remote_task")

    def is_asked() -> bool:
        site.worker.run_due()
        site.poll()
        return site.state(task) == ("waiting", "approval")

    async def answer() -> None:
        options = {"tasks": True, "mode": "2026-07-28", "elicitation_callback": ignored}
        async with mcp_client(http_api.url, http_api.key, **options) as mcp:
            ((key, form),) = (await asked(mcp, str(task)))["inputRequests"].items()
            assert "The MCP server 'other' asks about step 1" in form["params"]["message"]
            assert form["params"]["requestedSchema"]["properties"]["argument.argument.answer"]["default"] == "yes"
            await ask(mcp, "tasks/update", taskId=str(task), inputResponses={key: {"action": "accept", "content": {}}})

    wait_until(is_asked, "the other installation asks")
    assert "Guarded" in site.why(task).sentence
    (decision,) = client.decisions(task)
    assert (decision["kind"], decision["server"]) == ("approval", "other")
    assert "'Guarded'" in decision["question"]
    asyncio.run(answer())
    done = site.finish(task)
    assert done["output"] == "yes"
