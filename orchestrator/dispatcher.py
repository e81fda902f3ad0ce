"""Pending tasks become Celery messages, as far as each capability's window in the broker has room.

Woken by `NOTIFY minion_pending`; while a backlog waits for room it looks again every 50 ms, for room comes with every
task that finishes. Several orchestrators may run: `SKIP LOCKED` shares the work among them.
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
LOOK = text(
    "SELECT EXISTS (SELECT 1 FROM task_status WHERE state = 'pending' AND capability IS NULL) AS unprepared, "
    "EXISTS (SELECT 1 FROM task_status WHERE state IN ('queued', 'running')) AS in_flight"
)
# A parked task waits for its turn in its conversation; whoever gives it that notifies.
BACKLOG = text(
    "SELECT EXISTS (SELECT 1 FROM task_status "
    "WHERE state = 'pending' AND capability = ANY (:served) AND rank < minion_parked())"
)
NEXT_HOLD = text("SELECT extract(epoch FROM min(until_at) - now()) FROM rate_holds WHERE until_at > now()")
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
        # Each statement a transaction of its own: a round is a few round trips.
        self.statements = engine.execution_options(isolation_level="AUTOCOMMIT")
        self.app = app
        self._listener = Listener(settings, "minion_pending")

    def round(self) -> float:
        """Prepares, dispatches and publishes one batch."""
        self._listener.open()
        with self.statements.connect() as connection:
            found = connection.execute(LOOK).one()
            more = found.unprepared and self._prepare()
            batch = lifecycle.dispatch(
                connection, lease=self.settings.lease_seconds, window=self.settings.dispatch_window
            )
            if batch:
                self._publish(batch)
            if more:
                return BACKLOG_SECONDS
            if not self._has_backlog(connection):
                return IDLE_SECONDS
            # What was in flight before the batch was chosen may have ended since, and made room.
            if batch or found.in_flight:
                return BACKLOG_SECONDS
            # All are paused or held: whoever lifts a pause or a limit notifies, a hold runs out.
            hold = connection.scalar(NEXT_HOLD)
            return IDLE_SECONDS if hold is None else max(BACKLOG_SECONDS, min(IDLE_SECONDS, float(hold)))

    def _prepare(self) -> bool:
        """What cannot be prepared now must not keep the others from being dispatched. Whether there may be more."""
        try:
            return prepare_pending(self.engine)
        except Exception as error:
            self._tell(error)
            return False

    def wait(self, seconds: float) -> None:
        """Waits for a notification, or until the time is up; with a backlog, until the time is up."""
        if seconds > BACKLOG_SECONDS:
            self._listener.wait(seconds)
        else:
            super().wait(seconds)
            self._listener.drain()

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
