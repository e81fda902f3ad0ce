"""A worker's pool: children that die while it starts, its size under `--autoscale`, and the memory of its children."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from tests.integration.conftest import Tasks
from tests.support.processes import Process, killed_on_exit, start_worker, wait_online, wait_until


def test_worker_survives_child_that_dies_right_after_its_fork(
    database: Engine, tool_package: Path, tmp_path: Path
) -> None:
    """While it starts, Celery asks the pool once whether a child has died, and ends the worker if one has."""
    process = start_worker(tmp_path, "work", 2, fresh=True)
    with killed_on_exit(process):
        killed = wait_until(lambda: children(process), "the first child is forked", 90).pop()
        os.kill(killed, signal.SIGKILL)
        wait_online(database, process)
        wait_until(lambda: len(children(process) - {killed}) == 2, "the child is replaced")
        assert process.stop() == 0


@pytest.mark.usefixtures("loops")
def test_slots_follow_the_size_of_an_autoscaled_pool(database: Engine, tasks: Tasks, act: Any, tmp_path: Path) -> None:
    process = start_worker(tmp_path, "work", options=["--autoscale=3,1"])
    with killed_on_exit(process):
        wait_online(database, process)
        assert slots(database) == (1, 0)
        for _ in range(3):
            tasks.submit(act(), {"do": "sleep", "seconds": 60})
        wait_until(lambda: slots(database) == (3, 3), "the pool has grown", 90)


@pytest.mark.usefixtures("loops")
def test_pool_that_may_shrink_to_zero_has_a_free_slot(
    database: Engine, tasks: Tasks, act: Any, tool_package: Path, tmp_path: Path
) -> None:
    """Without one its lost messages would never be published again."""
    process = start_worker(tmp_path, "work", options=["--autoscale=2,0"])
    with killed_on_exit(process):
        wait_online(database, process)
        assert slots(database) == (1, 0)
        assert tasks.run(act(), {"do": "answer", "answer": 5})["output"] == 5


@pytest.mark.usefixtures("loops")
def test_child_shares_most_of_its_memory(
    database: Engine, tasks: Tasks, act: Any, tool_package: Path, tmp_path: Path
) -> None:
    process = start_worker(tmp_path, "work", 2, env={"ANTHROPIC_API_KEY": "test-key"}, fresh=True)
    with killed_on_exit(process):
        wait_online(database, process)
        memory = tasks.run(act(), {"do": "collect"})["output"]
        assert memory["private"] < memory["shared"], memory


def slots(database: Engine) -> tuple[int, int]:
    """Return how many slots the worker reports, and how many of them are busy."""
    with database.connect() as connection:
        size, busy = connection.execute(text("SELECT slots, busy FROM workers WHERE status = 'online'")).one()
    assert busy <= size
    return size, busy


def children(process: Process) -> set[int]:
    """The processes that a worker's main thread has forked."""
    assert process.running, process.output()
    return {int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()}
