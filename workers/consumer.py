"""A Celery consumer that lives through the loss of the broker."""

from __future__ import annotations

from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer


class Consumer(CeleryConsumer):
    """Celery 5.7 exits when Redis goes away while a late-acknowledged task is in flight: closing the broken
    connection fails with `'NoneType' object has no attribute 'hostname'`. The broken connection is left to the garbage
    collector instead; the restart makes a new one.
    """

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """Reconnects; running tasks go on, for their records go to PostgreSQL."""
        connection = self.connection
        if connection is not None:
            connection.close = connection.release = _do_nothing
        super().on_connection_error_after_connected(exc)


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    """In place of closing what is broken."""
