"""Agents whose model calls go into Message Batches: no worker waits, and each needed call is paid for once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine

from minions import testing
from minions.testing import MessagesApi
from orchestrator.batches.batcher import Batcher
from orchestrator.explain import Explanation, explain
from shared.settings import Settings
from tests.integration.agents.conftest import DefineAgent
from tests.integration.conftest import InlineWorker, Tasks

SHORT = {"batch_seconds": 0.0, "batch_poll_seconds": 0.001, "batch_lost_seconds": 0.001}


@dataclass
class Site:
    """An orchestrator's batcher and a worker, one round at a time."""

    tasks: Tasks
    worker: InlineWorker
    batcher: Batcher
    engine: Engine

    def submit(self, value: Any = "Hello.", **fields: Any) -> UUID:
        """Submit a task, and run it until its first call waits."""
        task = self.tasks.submit("Agent", value, **fields)
        self.worker.run_due()
        return task

    def round(self) -> None:
        """Let the batcher do what is due, then the worker."""
        self.batcher.run_once()
        self.worker.run_due()

    def finish(self, task: UUID) -> dict[str, Any]:
        """Go on until the task has ended."""
        for _ in range(20):
            found = self.tasks.get(task)
            if found["finished_at"]:
                return found
            self.round()
        raise AssertionError(f"{task} has not ended: {self.why(task)}")

    def why(self, task: UUID) -> Explanation:
        """Explain the task's state."""
        with self.engine.connect() as connection:
            return explain(connection, task, lease=10.0)


@pytest.fixture
def batching(messages_api: MessagesApi, inline_worker: InlineWorker, tasks: Tasks) -> Iterator[Callable[..., Site]]:
    """Creates a site; its settings are given by name."""
    made: list[Batcher] = []

    def make(**settings: Any) -> Site:
        made.append(Batcher(Settings(**{**SHORT, **settings}), inline_worker.engine))
        return Site(tasks, inline_worker, made[-1], inline_worker.engine)

    yield make
    for batcher in made:
        batcher.close()


@pytest.fixture
def site(batching: Callable[..., Site], define_agent: DefineAgent) -> Site:
    """A site with an agent in the batch lane."""
    define_agent({"lane": "batch"})
    return batching()


def test_task_waits_for_each_call_and_runs_tools_between(site: Site, messages_api: MessagesApi) -> None:
    messages_api.script = [testing.tool_use(("act", {"n": 7})), testing.text("Seven.")]
    task = site.submit()
    waiting = site.tasks.get(task)
    assert (waiting["state"], waiting["wait_reason"], waiting["worker_id"]) == ("waiting", "batch", None)
    done = site.finish(task)
    assert (done["state"], done["output"]) == ("succeeded", {"content": "Seven."})
    assert [step["name"] for step in site.tasks.steps(task)] == ["claude-sonnet-5-5", "act", "claude-sonnet-5-5"]
    assert len(messages_api.batches) == len(messages_api.requests) == 2
