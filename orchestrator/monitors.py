"""Reports executions that the orchestrator ends to Celery's monitors: those of lost workers and expired tasks.

A separate loop: the broker may be unavailable, and the loops that end executions must not wait for it.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress

from celery import Celery

from orchestrator.loops.loop import Loop
from shared.monitor_events import MonitorEvent, send

LOOK_SECONDS = 0.5
MAX_KEPT = 10_000


class Monitors(Loop):
    """Sends task events in order. While the broker is unavailable the newest ones are kept."""

    name = "monitors"

    def __init__(self, app: Celery) -> None:
        super().__init__()
        self.app = app
        self._events: deque[MonitorEvent] = deque(maxlen=MAX_KEPT)

    def report(self, event: MonitorEvent | None) -> None:
        """Queue an event. May be called from any thread, after the commit."""
        if event is not None:
            self._events.append(event)

    def run_once(self) -> float:
        """Send the queued events."""
        if batch := list(self._events):
            send(self.app, batch)
            for event in batch:
                # An overflow of more than MAX_KEPT events may have removed it.
                with suppress(ValueError):
                    self._events.remove(event)
        return LOOK_SECONDS

    def close(self) -> None:
        """Send the events from the last rounds of the other loops."""
        with suppress(Exception):
            self.run_once()
