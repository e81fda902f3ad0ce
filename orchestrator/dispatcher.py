"""Publishes pending tasks as Celery messages while each capability's window in the broker has room.

`NOTIFY minion_pending` wakes it. While a backlog waits for room it also checks every 50 ms, because every finished task
makes room, and notifications are collected for 10 ms. Several orchestrators may run: `SKIP LOCKED` shares the work
among them.
"""

from __future__ import annotations

from typing import Any

import structlog
from celery import Celery
from sqlalchemy import Connection, Engine, event, text

from orchestrator.loops.listener import Listener
from orchestrator.loops.loop import Loop
from orchestrator.packing import Packing
from orchestrator.preparer import prepare_pending
from shared.broker import publish_packs
from shared.database.connections import autocommit, make_engine
from shared.settings import Settings
from shared.tasks import lifecycle
from shared.tasks.lifecycle import Dispatched

log = structlog.get_logger(__name__)

IDLE_SECONDS = 1.0
# Seldom enough for batches of a good size, often enough to keep the smallest window from running dry.
BACKLOG_SECONDS = 0.05
# One capability's backlog must not delay the tasks of another, nor one that is woken: this is their longest wait.
COLLECT_SECONDS = 0.01
LOOK = text(
    "SELECT EXISTS (SELECT 1 FROM task_status WHERE state = 'pending' AND capability IS NULL) AS unprepared, "
    "EXISTS (SELECT 1 FROM task_status WHERE state IN ('queued', 'running')) AS in_flight"
)
# A parked task waits for its predecessor in its conversation; the transaction that releases it notifies.
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
        self._dedicated = _make_engine(settings)
        self.statements = autocommit(self._dedicated)
        self.app = app
        self._packing = Packing(settings.lease_seconds)
        self._listener = Listener(settings, "minion_pending")
        self._in_flight = False

    def run_once(self) -> float:
        """Dispatch and publish one batch, then prepare tasks, and dispatch these."""
        self._listener.open()
        with self.statements.connect() as connection:
            # First of all: a task that is ready waits for nothing else.
            dispatched = self._dispatch(connection)
            found = connection.execute(LOOK).one()
            if found.unprepared:
                more = self._prepare()
                dispatched |= self._dispatch(connection)
                if more:
                    return BACKLOG_SECONDS
            # Tasks that were in flight before the batch was chosen may have ended since, and made room.
            made_room = dispatched or self._in_flight or found.in_flight
            self._in_flight = found.in_flight
            if not self._has_backlog(connection):
                return IDLE_SECONDS
            if made_room:
                return BACKLOG_SECONDS
            # All are paused or held: lifting a pause or a limit notifies, and a hold runs out.
            hold = connection.scalar(NEXT_HOLD)
            return IDLE_SECONDS if hold is None else max(BACKLOG_SECONDS, min(IDLE_SECONDS, float(hold)))

    def _dispatch(self, connection: Connection) -> bool:
        """Dispatch and publish one batch. Return whether there was one."""
        batch = lifecycle.dispatch(
            connection,
            lease=self.settings.lease_seconds,
            window=self.settings.dispatch_window,
            windows=self._packing.windows,
        )
        if batch:
            self._publish(self._packing.pack(connection, batch))
        return bool(batch)

    def _prepare(self) -> bool:
        """Prepare tasks; a failure must not keep the others from being dispatched. Return whether there may be more."""
        try:
            return prepare_pending(self.engine)
        except Exception as error:
            self._log_failure(error)
            return False

    def wait(self, seconds: float) -> None:
        """Wait for a notification or the timeout; with a backlog, one round serves all notifications of 10 ms."""
        if seconds <= BACKLOG_SECONDS:
            super().wait(COLLECT_SECONDS)
            seconds -= COLLECT_SECONDS
        self._listener.wait(seconds)

    def close(self) -> None:
        """Close the connections."""
        self._listener.close()
        self._dedicated.dispose()

    def _publish(self, packs: list[list[Dispatched]]) -> None:
        """Publish a batch, one message for each pack.

        Tasks whose messages cannot be sent stay queued; the republisher publishes them again.
        """
        try:
            publish_packs(self.app, packs)
        except Exception as error:
            log.warning("broker_away", reason=str(error)[:300], messages=len(packs))
            self.stopping.wait(1.0)
        else:
            log.debug("dispatched", tasks=sum(map(len, packs)), messages=len(packs))

    def _has_backlog(self, connection: Connection) -> bool:
        served = list(connection.scalars(SERVED, {"lease": self.settings.lease_seconds}))
        return bool(served and connection.scalar(BACKLOG, {"served": served}))


def _make_engine(settings: Settings) -> Engine:
    """Create a dedicated engine: its one connection keeps the plans of the dispatcher's statements.

    It is not pinged, because a failed round is repeated. Its commits do not wait for the disk: if PostgreSQL crashes
    and loses one, its tasks are pending again, and of the messages that are then sent twice, one finds a claim. A plan
    that was made for an empty table would read all of a large backlog, until the next ANALYZE.
    """
    engine = make_engine(settings, pool_size=1, pre_ping=False)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, record: Any) -> None:
        connection.execute("SET synchronous_commit = off")
        connection.execute("SET enable_seqscan = off")
        connection.commit()

    return engine
