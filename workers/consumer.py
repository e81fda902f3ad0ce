"""Celery consumer that survives broker outages and checks the messages that it takes from the broker.

It detects dead child processes quickly and batches its events.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.consumer.control import Control

from workers import pack_request, remote_control

EVENTS_SECONDS = 0.2
CHILDREN_SECONDS = 0.25


class Consumer(CeleryConsumer):
    """Consumer that restarts when Redis goes away while a late-acknowledged task is in flight. Celery 5.7 exits then:
    closing the broken connection fails with `'NoneType' object has no attribute 'hostname'`. The broken connection is
    left to the garbage collector instead; the restart opens a new one.
    """

    _events_leave_at = 0.0

    def __init__(self, *arguments: Any, worker_options: dict[str, Any] | None = None, **options: Any) -> None:
        # With these two, workers would trust what others report about revoked messages and the time.
        alone = {**(worker_options or {}), "without_mingle": True, "without_gossip": True}
        super().__init__(*arguments, worker_options=alone, **options)
        for step in self.steps:
            if isinstance(step, Control):
                step.box.node.handlers = remote_control.handlers()

    def connection_for_read(self, heartbeat: float | None = None) -> Any:
        """Return a connection that checks messages before kombu sees them."""
        connection = self.app.connection_for_read(heartbeat=heartbeat)
        connection.transport_cls = "workers.transport:Transport"  # by its name: monitors ask for it
        return self.ensure_connected(connection)

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """Reconnect. Running tasks continue, because their records are written to PostgreSQL."""
        connection = self.connection
        if connection is not None:
            connection.close = connection.release = _do_nothing
        super().on_connection_error_after_connected(exc)

    def register_with_event_loop(self, hub: Any) -> None:
        """Check the pool's children often. Celery notices a child's death when its pipe is closed, shortly before the
        kernel reports the end of the process, and checks again 5 s later. The child's task would be stuck for that
        long.
        """
        super().register_with_event_loop(hub)
        hub.call_repeatedly(CHILDREN_SECONDS, self._look_after_children)
        # Celery asks this next, once, and exits with code 1 if any child has died since the start.
        self.pool.did_start_ok = self._replace_dead_children

    def _look_after_children(self) -> None:
        if hasattr(self.pool, "maintain_pool"):
            self.pool.maintain_pool()
        pack_request.check()

    def _replace_dead_children(self) -> bool:
        """Replace children that died while the worker started. A pool whose children keep dying still ends it."""
        self.pool.maintain_pool()
        return True

    def on_send_event_buffered(self) -> None:
        """Send events for Flower in batches. One by one they took a third of this process's work."""
        now = time.monotonic()
        if self.hub and now >= self._events_leave_at:
            self._events_leave_at = now + EVENTS_SECONDS
            self.hub.call_later(EVENTS_SECONDS, self._flush_events)

    def shutdown(self) -> None:
        """Send the last events: Celery would drop those of tasks that ended while the worker stopped."""
        with suppress(Exception):
            self._flush_events()
        super().shutdown()


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    """Stand-in for closing a broken connection."""
