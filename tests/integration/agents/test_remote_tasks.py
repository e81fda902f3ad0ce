"""Tool calls that an MCP server finishes later: as its own task, or after a person has answered its questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from orchestrator.explain import Explanation, explain
from orchestrator.maintenance.remote_poller import RemotePoller
from shared.access.actors import Key
from shared.database.connections import autocommit, transaction
from shared.errors import Conflict, InvalidInput
from shared.mcp.eras import Eras
from shared.settings import Settings, get_settings
from shared.tasks import approvals, lifecycle, remote_calls, stops
from shared.tasks.states import FINAL
from tests.conftest import Define
from tests.integration.conftest import InlineWorker, Tasks
from tests.support.mcp_server import RawServer, Shop, raw_server, reference_server, text_result
from tests.support.mcp_tasks import BRANCH, Job, Jobs, answered_by, question
from tests.support.processes import wait_until

LISTED = "0" * 64
ROWS = text("SELECT count(*) FROM remote_calls")
HURRY = text("UPDATE remote_calls SET due_at = now()")
AGE = text("UPDATE remote_calls SET failing_since = now() - interval '2 d', created_at = now() - interval '2 d'")
IDEMPOTENT = {"readOnlyHint": False, "destructiveHint": False, "idempotentHint": True, "openWorldHint": False}


@dataclass
class Site:
    """A worker and the remote poller, one round at a time."""

    tasks: Tasks
    worker: InlineWorker
    poller: RemotePoller
    engine: Engine

    def submit(self, agent: str, value: Any = None) -> UUID:
        """Submit a task, and run it until it waits or has ended."""
        task = self.tasks.submit(agent, value or {"target": "x"})
        self.worker.run_due()
        return task

    def poll(self) -> None:
        """Poll all calls now."""
        with self.engine.begin() as connection:
            connection.execute(HURRY)
        self.poller.run_once()
        wait_until(lambda: not +self.poller.busy, "all polls ended")

    def finish(self, task: UUID) -> dict[str, Any]:
        """Go on until the task has ended; return it."""

        def look() -> dict[str, Any] | None:
            found = self.tasks.get(task)
            if found["state"] in FINAL:
                return found
            self.poll()
            self.worker.run_due()
            return None

        return wait_until(look, f"{task} has ended")

    def state(self, task: UUID) -> tuple[str, str | None]:
        found = self.tasks.get(task)
        return found["state"], found["wait_reason"]

    def rows(self) -> int:
        with self.engine.connect() as connection:
            return int(connection.scalar(ROWS) or 0)

    def why(self, task: UUID) -> Explanation:
        with self.engine.connect() as connection:
            return explain(connection, task, lease=10.0)

    def decide(self, task: UUID, verdict: str, value: Any = None) -> None:
        """Decide as the endpoint does."""
        proposal = self.why(task).facts["proposal"]
        with autocommit(self.engine).connect() as connection:
            approver = approvals.judge(
                connection, task, None, proposal, value, key=Key.bootstrap(), approves=verdict == "approve"
            )
        with transaction() as connection:
            lifecycle.decide(connection, task, verdict, who="ann", proposal=proposal, value=value, approver=approver)


@pytest.fixture(autouse=True)
def configured(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine's own addresses are allowed, and no server is known."""
    monkeypatch.setenv("MINION_ALLOW_PRIVATE_ADDRESSES", "127.0.0.1")
    monkeypatch.setattr("workers.tools.mcp.eras", Eras())
    get_settings.cache_clear()
    yield
    monkeypatch.undo()
    get_settings.cache_clear()


@pytest.fixture(scope="module")
def shop_with_jobs() -> Iterator[tuple[Shop, Jobs]]:
    jobs = Jobs()
    with reference_server(extensions=[jobs]) as shop:
        yield shop, jobs


@pytest.fixture
def jobs(shop_with_jobs: tuple[Shop, Jobs], define: Define) -> Jobs:
    """The reference server with tasks, and agents that call its tools."""
    shop, jobs = shop_with_jobs
    jobs.__init__()  # type: ignore[misc]
    define(*definitions(shop.url, "build", "deploy", "confirm"))
    return jobs


def definitions(url: str, *tools: str, **fields: Any) -> list[dict[str, Any]]:
    """A server, and for each of its tools an agent of that name that calls it."""
    made: list[dict[str, Any]] = [{"kind": "mcp_server", "name": "ci", "url": url, "trusted": True}]
    for tool in tools:
        effect = "unsafe" if tool == "deploy" else "idempotent"
        called = {"server": "ci", "tool": tool, "listed": LISTED, "annotations": IDEMPOTENT}
        made.append({"kind": "tool", "name": tool, "type": "mcp", "effect": effect, "mcp": called, **fields})
        config = {"capabilities": ["work"], "max_attempts": 2, "retry_backoff": 0.0}
        made.append({"kind": "agent", "name": tool, "type": "function", "tool": tool, "config": config})
    return made


@pytest.fixture
def site(inline_worker: InlineWorker, tasks: Tasks, settings: Settings, configured: None) -> Iterator[Site]:
    poller = RemotePoller(settings, inline_worker.engine)
    yield Site(tasks, inline_worker, poller, inline_worker.engine)
    poller.close()


def test_task_waits_for_remote_task_without_a_worker(site: Site, jobs: Jobs) -> None:
    task = site.submit("build")
    assert site.state(task) == ("waiting", "remote_task")
    jobs.job.message = "compiling"
    site.poll()
    why = site.why(task)
    assert why.reason == "remote_task"
    assert "task job-1 of the MCP server 'ci', which is working: 'compiling'" in why.sentence
    jobs.job.finish("built x")
    site.poll()
    site.worker.run_due()
    done = site.tasks.get(task)
    assert (done["state"], done["output"]) == ("succeeded", "built x")
    [step] = site.tasks.steps(task)
    assert step["usage"]["remote"] == {"server": "ci", "task": "job-1"}
    assert len(jobs.calls) == 1
    site.poll()
    assert site.rows() == 0
