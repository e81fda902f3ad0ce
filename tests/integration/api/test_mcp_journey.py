"""A desktop client's journey, over standard input and output, while an orchestrator and a worker are killed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from mcp import Client as McpClient
from mcp import StdioServerParameters
from mcp_types import ElicitResult
from sqlalchemy import Engine

from shared.settings import Settings
from tests.integration.conftest import Tasks
from tests.support.mcp_client import TasksExtension, ask, until
from tests.support.processes import (
    ROOT,
    Process,
    killed_on_exit,
    start_orchestrator,
    start_worker,
    wait_listening,
    wait_online,
    wait_until,
)


class Machines:
    """The processes of the journey."""

    def __init__(self, folder: Path, engine: Engine, stack: ExitStack) -> None:
        self._folder, self._engine, self._stack = folder, engine, stack
        self.orchestrator, self.worker = self._orchestrator("0"), self._worker()
        self.url = self._wait()

    def replace_orchestrator(self) -> None:
        self.orchestrator.kill()
        self.orchestrator = self._orchestrator(self.url.rpartition(":")[2])
        self._wait()

    def replace_worker(self) -> None:
        self.worker.kill()
        self.worker = self._worker()

    def _orchestrator(self, port: str) -> Process:
        return self._started(start_orchestrator(self._folder, env={"MINION_API_PORT": port}))

    def _worker(self) -> Process:
        return self._started(start_worker(self._folder, "journey"))

    def _started(self, process: Process) -> Process:
        self._stack.enter_context(killed_on_exit(process))
        return process

    def _wait(self) -> str:
        url = wait_listening(self.orchestrator, 60)
        wait_online(self._engine, self.worker)
        return url


@pytest.fixture
def machines(database: Engine, tool_package: Path, tmp_path: Path) -> Iterator[Machines]:
    """An orchestrator and a worker."""
    with ExitStack() as stack:
        yield Machines(tmp_path, database, stack)


async def shows_forms(context: Any, params: Any) -> ElicitResult:
    raise AssertionError("tasks carry their forms")


def test_journey_survives_orchestrator_and_worker(
    act: Any, machines: Machines, tasks: Tasks, settings: Settings, tmp_path: Path
) -> None:
    log = tmp_path / "calls"
    act(
        "Refund",
        description="Refunds an order.",
        input_schema={"type": "object", "properties": {"do": {"type": "string"}, "seconds": {"type": "number"}}},
        config={"approval": True, "capabilities": ["journey"]},
    )

    async def journey() -> dict[str, Any]:
        bridge = StdioServerParameters(
            command=sys.executable,
            args=["-m", "orchestrator.cli", "mcp", "serve", "--as", "Ann"],
            # Neither a database nor a broker.
            env={
                "MINION_API_URL": machines.url,
                "MINION_API_KEY": settings.require_api_key(),
                "PYTHONWARNINGS": "ignore",
            },
            cwd=ROOT,
        )
        extension = TasksExtension()
        async with McpClient(bridge, extensions=[extension], elicitation_callback=shows_forms) as client:
            assert "Refund" in [tool.name for tool in (await client.list_tools()).tools]
            arguments = {"do": "sleep", "seconds": 1.0, "log": str(log)}
            created = await client.session.call_tool("Refund", arguments, allow_claimed=True)
            task_id = created.model_dump()["taskId"]
            asked = await until(client, task_id, "input_required")
            ((key, form),) = asked["inputRequests"].items()
            assert "Refund" in form["params"]["message"]
            await asyncio.to_thread(machines.replace_orchestrator)
            await ask(client, "tasks/update", taskId=task_id, inputResponses={key: {"action": "accept", "content": {}}})
            await asyncio.to_thread(wait_until, lambda: log.exists(), "the call")
            machines.replace_worker()
            assert (await until(client, task_id, "working"))["statusMessage"]
            return await until(client, task_id, "completed")

    ended = asyncio.run(journey())
    assert ended["result"]["structuredContent"] == {"slept": 1.0}
    # The call is idempotent: the second worker repeated it, under the same key.
    keys = {line.split()[2] for line in log.read_text().splitlines()}
    assert len(keys) == 1
