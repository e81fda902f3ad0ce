"""Tells Celery's monitors of executions that the orchestrator ends: of lost workers, and of tasks that expire.

A separate loop: the broker may be away, and what ends executions must not wait for it.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress

from celery import Celery

from orchestrator.loop import Loop
from shared.monitor_events import TaskEvent, send

LOOK_SECONDS = 0.5
MOST_KEPT = 10_000


class Monitors(Loop):
    """Sends task events in order. While the broker is away the newest ones are kept."""

    name = "monitors"

    def __init__(self, app: Celery) -> None:
        super().__init__()
        self.app = app
        self._events: deque[TaskEvent] = deque(maxlen=MOST_KEPT)

    def tell(self, event: TaskEvent | None) -> None:
        """Queue an event. Call it from any thread, after the commit."""
        if event is not None:
            self._events.append(event)

    def round(self) -> float:
        """Send what is queued."""
        if batch := list(self._events):
            send(self.app, batch)
            for event in batch:
                # More than MOST_KEPT may have pushed it out.
                with suppress(ValueError):
                    self._events.remove(event)
        return LOOK_SECONDS

    def close(self) -> None:
        """Send what the other loops' last rounds have left."""
        with suppress(Exception):
            self.round()
