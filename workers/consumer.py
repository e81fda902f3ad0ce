"""A Celery consumer that survives broker outages and checks what it takes from the broker.

It soon replaces children that died, and sends its events in bundles.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.consumer.control import Control

from workers import remote_control

EVENTS_SECONDS = 0.2
CHILDREN_SECONDS = 0.25


class Consumer(CeleryConsumer):
    """Celery 5.7 exits when Redis goes away while a late-acknowledged task is in flight: closing the broken
    connection fails with `'NoneType' object has no attribute 'hostname'`. The broken connection is left to the garbage
    collector instead; the restart makes a new one.
    """

    _events_leave_at = 0.0

    def __init__(self, *arguments: Any, worker_options: dict[str, Any] | None = None, **options: Any) -> None:
        # With these two, workers believe what others say about revoked messages and about the time.
        alone = {**(worker_options or {}), "without_mingle": True, "without_gossip": True}
        super().__init__(*arguments, worker_options=alone, **options)
        for step in self.steps:
            if isinstance(step, Control):
                step.box.node.handlers = remote_control.handlers()

    def connection_for_read(self, heartbeat: float | None = None) -> Any:
        """A connection that checks messages before kombu sees them."""
        connection = self.app.connection_for_read(heartbeat=heartbeat)
        connection.transport_cls = "workers.transport:Transport"  # by its name: monitors ask for it
        return self.ensure_connected(connection)

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """Reconnects; running tasks go on, for their records go to PostgreSQL."""
        connection = self.connection
        if connection is not None:
            connection.close = connection.release = _do_nothing
        super().on_connection_error_after_connected(exc)

    def register_with_event_loop(self, hub: Any) -> None:
        """Looks after the pool's children often. Celery hears of a child's death when its pipe is closed, which is a
        moment before the kernel says that it has ended, and looks again 5 s later: so long its task would lie there.
        """
        super().register_with_event_loop(hub)
        if hasattr(self.pool, "maintain_pool"):
            hub.call_repeatedly(CHILDREN_SECONDS, self.pool.maintain_pool)
        # Celery asks this next, once, and exits with code 1 if any child has died since the start.
        self.pool.did_start_ok = self._replace_dead_children

    def _replace_dead_children(self) -> bool:
        """Replace children that died while the worker started. A pool whose children keep dying still ends it."""
        self.pool.maintain_pool()
        return True

    def on_send_event_buffered(self) -> None:
        """Events for Flower leave together. One by one they were a third of this process's work."""
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
    """In place of closing what is broken."""
