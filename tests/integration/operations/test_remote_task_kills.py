"""Processes are killed while a task of an MCP server runs: it is created once, and its result arrives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.conftest import Define
from tests.integration.agents.test_remote_tasks import definitions
from tests.integration.conftest import Tasks
from tests.support.mcp_server import reference_server
from tests.support.mcp_tasks import Job, Jobs
from tests.support.processes import killed_on_exit, start_orchestrator, start_worker, wait_online, wait_until

ENVIRONMENT = {"MINION_LEASE_SECONDS": "1", "MINION_ALLOW_PRIVATE_ADDRESSES": "127.0.0.1"}


@pytest.fixture
def jobs(define: Define) -> Iterator[Jobs]:
    made = Jobs()
    with reference_server(extensions=[made]) as shop:
        define(*definitions(shop.url, "build", config={"capabilities": ["remote"], "retry_backoff": 0.0}))
        yield made


def test_killed_processes_neither_lose_nor_repeat_a_remote_task(
    jobs: Jobs, tasks: Tasks, database: Engine, tmp_path: Path
) -> None:
    first = start_worker(tmp_path, "remote", 1, env=ENVIRONMENT)
    orchestrator = start_orchestrator(tmp_path, env=ENVIRONMENT)
    with killed_on_exit(first, orchestrator):
        wait_online(database, first)

        def strike(_: Job) -> None:
            """Kill the worker before it gets the id of the task that it has caused."""
            first.kill()

        jobs.prepare = strike
        task = tasks.submit("build", {"target": "x"})
        wait_until(lambda: jobs.jobs, "the server has created its task")
        with killed_on_exit(start_worker(tmp_path, "remote", 1, env=ENVIRONMENT)):
            tasks.wait_for(task, "waiting")
            wait_until(lambda: ("tasks/get", "job-1") in jobs.asked, "an orchestrator has asked")
            orchestrator.kill()
            jobs.job.finish("built x")
            with killed_on_exit(start_orchestrator(tmp_path, env=ENVIRONMENT)):
                assert tasks.wait(task)["output"] == "built x"
    assert len(jobs.jobs) == 1
