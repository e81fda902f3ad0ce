"""The inline worker in the background, while a command in the foreground waits for its tasks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Worker(Protocol):
    """A worker that runs what is due."""

    def run_due(self) -> None: ...


@contextmanager
def working(worker: Worker) -> Iterator[None]:
    """Run due tasks until the end of the block."""
    stopped = threading.Event()

    def work() -> None:
        while not stopped.wait(0.02):
            worker.run_due()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
