"""Children of a worker's pool that die before the worker has begun its work."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from sqlalchemy import Engine

from tests.processes import Process, ended_at_last, start_worker, wait_online, wait_until


def test_worker_survives_child_that_dies_right_after_its_fork(
    database: Engine, offered: Path, tmp_path: Path
) -> None:
    """While it starts, Celery asks the pool once whether a child has died, and ends the worker if one has."""
    process = start_worker(tmp_path, "work", 2)
    with ended_at_last(process):
        killed = wait_until(lambda: children(process), "the first child is forked").pop()
        os.kill(killed, signal.SIGKILL)
        wait_online(database, process)
        wait_until(lambda: len(children(process) - {killed}) == 2, "the child is replaced")
        assert process.stop() == 0


def children(process: Process) -> set[int]:
    """The processes that a worker's main thread has forked."""
    assert process.running, process.output()
    return {int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()}
