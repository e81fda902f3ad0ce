"""Publishes the messages of tasks that requests have queued. A separate thread: no request waits for the broker."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from shared.broker import make_app, publish
from shared.settings import Settings
from shared.tasks.lifecycle import Dispatched

log = structlog.get_logger(__name__)

STOP_SECONDS = 5.0


class Publisher:
    """Thread with a separate connection to the broker.

    A task whose message cannot be sent stays queued; the republisher publishes it again.
    """

    def __init__(self, settings: Settings) -> None:
        self._app = make_app(settings)
        self._queued: queue.SimpleQueue[Dispatched | None] = queue.SimpleQueue()

    def publish(self, task: Dispatched) -> None:
        """Publish the message of a task, soon."""
        self._queued.put(task)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Publish while the block runs, and what is left when it ends."""
        thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._queued.put(None)
            thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while (task := self._queued.get()) is not None:
            try:
                publish(self._app, [task])
            except Exception as error:
                log.warning("broker_away", reason=str(error)[:300], task=str(task.task_id))
