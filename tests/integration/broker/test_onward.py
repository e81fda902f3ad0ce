"""Slots publish the tasks that they make ready, and leave that to the dispatcher while the broker is away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from celery import Celery

from orchestrator.local.embedded import EmbeddedServers
from shared.broker import make_app
from shared.notifications import make_redis
from shared.settings import Settings
from tests.conftest import Define
from tests.integration.conftest import InlineWorker, Tasks
from workers import minion, onward
from workers.run_messages import RunMessage, read


@pytest.fixture
def slot(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """This process publishes as a slot of the pool does."""
    monkeypatch.setattr(onward, "_publisher", onward._Publisher())
    with make_app(settings) as app:
        onward.publish_from(app)
        yield app


@pytest.fixture
def chain(define: Define, act: Any, tasks: Tasks) -> dict[str, Any]:
    """A task of a chain of one step."""
    act("Act")
    define(
        {
            "kind": "agent",
            "name": "Line",
            "type": "function",
            "description": "A chain",
            "relations": [{"agent": "Act"}],
            "config": {"capabilities": ["work"], "chain_strategy": "sequential"},
        }
    )
    return tasks.get(tasks.submit("Line", {"answer": 1}))


def sent() -> list[RunMessage]:
    with make_redis() as broker:
        return [read(item) for item in reversed(broker.lrange("work", 0, -1))]


@pytest.mark.usefixtures("slot")
def test_slot_publishes_the_sub_task_and_the_woken_parent(
    chain: dict[str, Any], inline_worker: InlineWorker, tasks: Tasks
) -> None:
    before = len(sent())
    inline_worker.run_due()
    [child] = sent()[before:]
    assert [child.task_id] == [task["id"] for task in tasks.children(chain["id"])]
    minion.run(child.task_id, 0, inline_worker.id)
    [_, parent] = sent()[before:]
    assert parent.task_id == chain["id"]
    assert inline_worker.dispatch() == []
    minion.run(parent.task_id, 1, inline_worker.id)
    assert tasks.get(chain["id"])["output"] == 1


@pytest.mark.usefixtures("slot")
def test_task_is_left_to_the_dispatcher_while_the_broker_is_away(
    chain: dict[str, Any], inline_worker: InlineWorker, servers: EmbeddedServers, tasks: Tasks
) -> None:
    servers.valkey.kill()
    try:
        with structlog.testing.capture_logs() as logs:
            inline_worker.run_due()
        assert "broker_away" in [entry["event"] for entry in logs]
        assert onward.lease() is None
    finally:
        servers.valkey.start()
    [child] = tasks.children(chain["id"])
    assert child["state"] == "queued"  # the republisher publishes it
    minion.run(child["id"], 0, inline_worker.id)
    assert [message.task_id for message in inline_worker.dispatch()] == [chain["id"]]


def test_other_processes_publish_nothing(chain: dict[str, Any], inline_worker: InlineWorker, tasks: Tasks) -> None:
    inline_worker.run_due()
    [child] = tasks.children(chain["id"])
    assert child["state"] == "pending"
