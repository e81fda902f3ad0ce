"""A worker is killed with SIGKILL around calls with files: nothing is lost, and no answered call is paid for again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from minions import testing
from minions.testing import MessagesApi
from shared.tasks import files
from tests.conftest import Define
from tests.integration.agents.conftest import TOOLS, plain
from tests.integration.conftest import Tasks
from tests.support.media_files import b64, png
from tests.support.model_client import use_model_url
from tests.support.processes import killed_on_exit, start_worker, wait_online, wait_until

SENT, MADE = png(3, 2, padding=70_000), png(2, 3, padding=70_000)
POINTS = ("first call received", "second call received")


def image(data: bytes) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": b64(data)}}


class Api(MessagesApi):
    """Strikes once, when a call is received."""

    point = ""
    strike: Callable[[], object]

    def answer(self, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        turn = "second" if len(body["messages"]) > 1 else "first"
        self.reach(f"{turn} call received")
        return super().answer(headers, body)

    def reach(self, point: str) -> None:
        if self.point == point:
            self.point = ""
            self.strike()
            raise ConnectionResetError


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with testing.messages_api(Api()) as served, pytest.MonkeyPatch.context() as patch, use_model_url(served.url, patch):
        assert isinstance(served, Api)
        call = testing.tool_use(("act", {"do": "answer", "answer": {"$content": [image(MADE)]}}))
        served.script = [{**testing.text("Seen."), "if": "tool_result"}, call]
        yield served


@pytest.mark.parametrize("point", POINTS)
def test_worker_killed_in_a_call_with_files_loses_nothing(
    api: Api,
    database: Engine,
    define: Define,
    tasks: Tasks,
    loops: Any,
    tool_package: Path,
    tmp_path: Path,
    point: str,
) -> None:
    config = {"capabilities": ["pictures"], "max_attempts": 5}
    agent = {"kind": "agent", "name": "Agent", "model": "claude-sonnet-5-5", "tools": ["act"], "config": config}
    define(*TOOLS, agent)
    api.requests.clear()
    (tmp_path / "first").mkdir()
    first = start_worker(tmp_path / "first", "pictures", 1)
    api.point, api.strike = point, lambda: os.killpg(first.pid, signal.SIGKILL)
    with killed_on_exit(first):
        wait_online(database, first)
        task = tasks.submit(
            "Agent", messages=[{"role": "user", "content": [image(SENT), {"type": "text", "text": "?"}]}]
        )
        wait_until(lambda: not api.point, f"it is reached: {point}")
        first.kill()
        assert_is_done(database, tasks, task, tmp_path)
    sent = [plain(request) for request in api.requests]
    assert [len(each) for each in sent] == [1, 3]
    assert sent[1][0]["content"][0] == image(SENT)
    assert sent[1][2]["content"][0]["content"] == [image(MADE)]


def assert_is_done(database: Engine, tasks: Tasks, task: Any, folder: Path) -> None:
    """Another worker finishes the task."""
    (folder / "second").mkdir()
    with killed_on_exit(start_worker(folder / "second", "pictures", 1)):
        ended = tasks.wait(task)
    assert (ended["state"], ended["output"]) == ("succeeded", {"content": "Seen."}), ended["error"]
    with database.connect() as connection:
        stored = connection.scalars(text("SELECT file_id FROM task_files WHERE task_id = :task"), {"task": ended["id"]})
        assert set(stored) == {files.id_of(SENT), files.id_of(MADE)}
