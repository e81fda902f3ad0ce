"""The batch lane's processes are killed with SIGKILL at each point: each needed call is paid for once."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from minions import testing
from minions.testing import Batch, MessagesApi
from tests.conftest import Define
from tests.integration.agents.conftest import TOOLS
from tests.integration.conftest import Tasks
from tests.support.model_client import use_model_url
from tests.support.processes import (
    Process,
    killed_on_exit,
    start_orchestrator,
    start_worker,
    wait_online,
    wait_until,
)

FAST = {
    "MINION_BATCH_SECONDS": "0",
    "MINION_BATCH_POLL_SECONDS": "0.05",
    "MINION_BATCH_LOST_SECONDS": "0.5",
    "MINION_LEASE_SECONDS": "1",
}
NUMBER = 3
ANSWERED = text("SELECT count(*) FROM batch_calls WHERE result IS NOT NULL")
POINTS = (
    "before the creation",
    "after the creation",
    "when it asks for the batch",
    "when it asks for the results",
    "after a result",
    "after the last result",
)


class Api(MessagesApi):
    """Strikes once, when a request reaches a point."""

    point = ""
    struck = False
    strike: Callable[[], object]
    answered: Callable[[], int]

    def begin(self, point: str, strike: Callable[[], object], answered: Callable[[], int]) -> None:
        """Forget what was, and strike at this point."""
        self.point, self.strike, self.answered, self.struck = point, strike, answered, False
        self.requests.clear()
        self.batches.clear()

    def reach(self, point: str) -> bool:
        """Strike if this is the point and the first time."""
        if self.struck or self.point != point:
            return False
        self.struck = True
        self.strike()
        return True

    def create_batch(self, requests: list[dict[str, Any]], headers: dict[str, str] | None = None) -> Batch:
        if self.reach("before the creation"):
            raise ConnectionResetError
        batch = super().create_batch(requests, headers)
        self.reach("after the creation")
        return batch

    def show_batch(self, batch: Batch) -> dict[str, Any]:
        self.reach("when it asks for the batch")
        return super().show_batch(batch)

    def results_of(self, batch: Batch) -> Iterator[dict[str, Any]]:
        self.reach("when it asks for the results")
        for number, line in enumerate(batch.results, 1):
            yield line
            place = "after the last result" if number == len(batch.results) else "after a result"
            if self.point == place and not self.struck:
                wait_until(lambda: self.answered() >= 1, "a result is recorded")
                self.reach(place)


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with testing.messages_api(Api()) as served, pytest.MonkeyPatch.context() as patch, use_model_url(served.url, patch):
        assert isinstance(served, Api)
        served.script = [{**testing.text("Done."), "if": "tool_result"}, testing.tool_use(("echo", {"n": 1}))]
        yield served


@pytest.fixture(scope="module")
def waiting_worker(api: Api, tool_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = start_worker(tmp_path_factory.mktemp("worker"), "batched", 2)
    with killed_on_exit(process):
        yield process


@pytest.fixture
def start(api: Api, tmp_path: Path) -> Iterator[Callable[[], Process]]:
    """Starts orchestrators, and kills what is left of them."""
    with ExitStack() as stack:

        def begin() -> Process:
            process = start_orchestrator(tmp_path, env=FAST)
            stack.enter_context(killed_on_exit(process))
            return process

        yield begin


@pytest.fixture
def submit(define: Define, tasks: Tasks) -> Callable[[], list[Any]]:
    """Submits the tasks, each of which needs two calls."""

    def make() -> list[Any]:
        config = {"capabilities": ["batched"], "lane": "batch"}
        define(
            *TOOLS,
            {"kind": "agent", "name": "Agent", "model": "claude-sonnet-5-5", "tools": ["echo"], "config": config},
        )
        return [tasks.submit("Agent", f"Number {number}.") for number in range(NUMBER)]

    return make


def answered_calls(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(ANSWERED) or 0)


def assert_each_call_was_paid_for_once(api: Api, tasks: Tasks, submitted: list[Any]) -> None:
    ended = [tasks.wait(task) for task in submitted]
    assert {(task["state"], task["output"]["content"]) for task in ended} == {("succeeded", "Done.")}
    assert len(api.requests) == 2 * NUMBER
    names = Counter(line["custom_id"] for batch in api.batches.values() for line in batch.results)
    assert set(names.values()) == {1}
    kinds = [[step["kind"] for step in tasks.steps(task)] for task in submitted]
    assert kinds == [["model_call", "tool_call", "model_call"]] * NUMBER


@pytest.mark.parametrize("point", POINTS)
def test_orchestrator_killed_at_a_point_pays_once(
    api: Api, waiting_worker: Process, database: Engine, tasks: Tasks, start: Any, submit: Any, point: str
) -> None:
    wait_online(database, waiting_worker)
    orchestrator = start()
    api.begin(point, orchestrator.kill, lambda: answered_calls(database))
    submitted = submit()
    wait_until(lambda: api.struck, f"it is reached: {point}")
    start()
    assert_each_call_was_paid_for_once(api, tasks, submitted)


def test_worker_killed_while_calls_are_answered_pays_once(
    api: Api, database: Engine, tasks: Tasks, start: Any, submit: Any, tmp_path: Path, waiting_worker: Process
) -> None:
    wait_online(database, waiting_worker)
    start()
    api.begin("after a result", lambda: os.kill(waiting_worker.pid, signal.SIGKILL), lambda: answered_calls(database))
    submitted = submit()
    wait_until(lambda: api.struck, "a result is recorded")
    waiting_worker.kill()
    with killed_on_exit(start_worker(tmp_path, "batched", 2)):
        assert_each_call_was_paid_for_once(api, tasks, submitted)
