"""Pending tasks become Celery messages, as far as each capability's window in the broker has room.

Woken by `NOTIFY minion_pending`; while there is a backlog it looks again every 50 ms, for room comes with every task
that finishes. Several orchestrators may run: `SKIP LOCKED` shares the work among them.
"""

from __future__ import annotations

import structlog
from celery import Celery
from sqlalchemy import Connection, Engine, text

from orchestrator.listener import Listener
from orchestrator.loop import Loop
from orchestrator.routing import prepare_pending
from shared import lifecycle
from shared.broker import publish
from shared.lifecycle import Dispatched
from shared.settings import Settings

log = structlog.get_logger(__name__)

IDLE_SECONDS = 1.0
# Seldom enough for batches of a good size, often enough not to let the smallest window run dry.
BACKLOG_SECONDS = 0.05
UNPREPARED = text("SELECT EXISTS (SELECT 1 FROM task_status WHERE state = 'pending' AND capability IS NULL)")
BACKLOG = text("SELECT EXISTS (SELECT 1 FROM task_status WHERE state = 'pending' AND capability = ANY (:served))")
SERVED = text(
    "SELECT DISTINCT unnest(capabilities) FROM workers "
    "WHERE status = 'online' AND last_seen > now() - :lease * interval '1 s'"
)


class Dispatcher(Loop):
    """pending -> queued -> message."""

    name = "dispatcher"

    def __init__(self, settings: Settings, engine: Engine, app: Celery) -> None:
        super().__init__()
        self.settings = settings
        self.engine = engine
        # Each statement a transaction of its own: a round is three round trips.
        self.statements = engine.execution_options(isolation_level="AUTOCOMMIT")
        self.app = app
        self._listener = Listener(settings, "minion_pending")

    def round(self) -> float:
        """Prepares, dispatches and publishes one batch."""
        self._listener.open()
        with self.statements.connect() as connection:
            if connection.scalar(UNPREPARED):
                prepare_pending(self.engine)
            batch = lifecycle.dispatch(
                connection, lease=self.settings.lease_seconds, window=self.settings.dispatch_window
            )
            if batch:
                self._publish(batch)
            return BACKLOG_SECONDS if self._has_backlog(connection) else IDLE_SECONDS

    def wait(self, seconds: float) -> None:
        """Waits for a notification, or until the time is up."""
        if seconds >= IDLE_SECONDS:
            self._listener.wait(seconds)
        else:
            super().wait(seconds)

    def close(self) -> None:
        """Closes the listening connection."""
        self._listener.close()

    def _publish(self, batch: list[Dispatched]) -> None:
        """Tasks whose messages could not be sent stay queued; the rescuer publishes them again."""
        try:
            publish(self.app, batch)
        except Exception as error:
            log.warning("broker_away", reason=str(error)[:300], tasks=len(batch))
            self.stopping.wait(1.0)
        else:
            log.debug("dispatched", tasks=len(batch))

    def _has_backlog(self, connection: Connection) -> bool:
        served = list(connection.scalars(SERVED, {"lease": self.settings.lease_seconds}))
        return bool(served and connection.scalar(BACKLOG, {"served": served}))
