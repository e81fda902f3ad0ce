"""A worker that calls an MCP server is killed, or reaches a time limit: nothing is lost, and nothing happens twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from minions import testing
from minions.testing import MessagesApi, tool_use
from shared.database.connections import transaction
from shared.mcp.protocol import IDEMPOTENCY_KEY
from shared.tasks import lifecycle
from tests.conftest import Define
from tests.integration.conftest import Tasks
from tests.integration.operations.test_server_tool_kills import kill_with_lane
from tests.support.mcp_server import Shop, reference_server
from tests.support.model_client import use_model_url
from tests.support.processes import Process, killed_on_exit, start_worker, wait_online, wait_until

CAPABILITY = "remote"


@pytest.fixture(scope="module")
def api() -> Iterator[MessagesApi]:
    with testing.messages_api() as served, pytest.MonkeyPatch.context() as patch, use_model_url(served.url, patch):
        yield served


@pytest.fixture(scope="module")
def workers(api: MessagesApi, tool_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The worker that lives, and what starts another one."""
    folder, running = tmp_path_factory.mktemp("workers"), []

    def start() -> Process:
        running.append(start_worker(folder, CAPABILITY, env={"MINION_ALLOW_PRIVATE_ADDRESSES": "127.0.0.1"}))
        return running[-1]

    start()
    try:
        yield running, start
    finally:
        with killed_on_exit(*running):
            pass


@pytest.fixture
def shop() -> Iterator[Shop]:
    with reference_server() as running:
        yield running


@pytest.fixture
def remote(define: Define, shop: Shop) -> Any:
    """Defines `Remote`, which calls the tool `wait` with this effect, and `Asking`, whose model does."""

    def make(effect: str, **config: Any) -> None:
        common = {"capabilities": [CAPABILITY], **config}
        define(
            {"kind": "mcp_server", "name": "shop", "url": shop.url},
            {
                "kind": "tool",
                "name": "wait",
                "type": "mcp",
                "effect": effect,
                "input_schema": {"type": "object"},
                "mcp": {"server": "shop", "tool": "wait", "listed": "0" * 64},
            },
            {"kind": "agent", "name": "Remote", "type": "function", "tool": "wait", "config": common},
            {"kind": "agent", "name": "Asking", "model": "claude-sonnet-5-5", "tools": ["wait"], "config": common},
        )

    return make


@pytest.mark.parametrize(("effect", "agent"), [("idempotent", "Remote"), ("unsafe", "Asking")])
def test_killed_worker_loses_no_call(
    effect: str,
    agent: str,
    remote: Any,
    shop: Shop,
    api: MessagesApi,
    workers: Any,
    tasks: Tasks,
    database: Engine,
    loops: None,
) -> None:
    running, start = workers
    remote(effect)
    api.script = [tool_use(("wait", {})), testing.text("Done.")]
    wait_online(database, running[-1])
    task = tasks.submit(agent, {})
    wait_until(lambda: shop.calls, "the server is called")
    kill_with_lane(running[-1])
    start()
    if effect == "unsafe":
        assert tasks.wait_for(task, "waiting", timeout=60)["wait_reason"] == "answer"
        with transaction() as connection:
            lifecycle.decide(connection, task, "again", who="test")
    wait_until(lambda: len(shop.calls) == 2, "the server is called again", 60)
    shop.proceed.set()
    assert tasks.wait(task, 60)["output"] == ("waited" if agent == "Remote" else {"content": "Done."})
    assert len({meta[IDEMPOTENCY_KEY] for _, _, meta in shop.calls}) == 1
    assert len(shop.calls) == 2


@pytest.mark.parametrize("agent", ["Remote", "Asking"])
def test_time_limit_ends_a_call(
    agent: str, remote: Any, shop: Shop, api: MessagesApi, workers: Any, tasks: Tasks, database: Engine, loops: None
) -> None:
    remote("idempotent", soft_time_limit=1, time_limit=20, max_attempts=1)
    api.script = [tool_use(("wait", {})), testing.text("Done.")]
    wait_online(database, workers[0][-1])
    ended = tasks.run(agent, {})
    assert (ended["state"], ended["error"]["type"]) == ("failed", "time_limit_exceeded")
    assert len(shop.calls) == 1
