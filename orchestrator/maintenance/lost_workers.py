"""Detects lost workers, which have sent no heartbeat for a lease, and returns their tasks to pending.

Running tasks that their live worker does not know about return too. This is a separate loop because the time between
two rounds shows whether the database was frozen: no slow work may run in between.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy import Engine, text

from orchestrator.loops.loop import Loop, seconds_within_lease
from orchestrator.monitors import Monitors
from shared.database.connections import autocommit
from shared.monitor_events import event_just_ended
from shared.settings import Settings
from shared.tasks import lifecycle

log = structlog.get_logger(__name__)

# Few enough to be released well within half a lease.
BATCH = 100

NOW = text("SELECT now()")
LOSE_WORKERS = text(
    "UPDATE workers SET status = 'lost', busy = 0, active = '{}', idle_since = NULL "
    "WHERE status = 'online' AND last_seen < now() - :lease * interval '1 s' RETURNING id, name, last_seen"
)
# A heartbeat from before the clock was set back (it is in the future) says nothing about later claims.
ORPHANED = text(
    """
    SELECT s.task_id, s.claim, w.name, w.status, w.last_seen FROM task_status s JOIN workers w ON w.id = s.worker_id
        WHERE s.state = 'running'
          AND (w.status <> 'online' OR (s.updated_at < w.last_seen - :lease * interval '1 s'
                                        AND w.last_seen <= clock_timestamp()
                                        AND NOT s.task_id::text = ANY (w.active)))
        ORDER BY s.task_id LIMIT :most
    """
)


class LostWorkers(Loop):
    """Checks several times per lease for workers without heartbeats."""

    name = "lost_workers"

    def __init__(self, settings: Settings, engine: Engine, monitors: Monitors) -> None:
        super().__init__()
        self.settings = settings
        self.engine = engine
        self.monitors = monitors
        self._looked_at: datetime | None = None
        self._steady_since = datetime.max.replace(tzinfo=UTC)

    def run_once(self) -> float:
        """Check once, and release one batch of tasks."""
        self._lose_workers()
        if self._give_back_orphans() == BATCH:
            return 0.0
        return seconds_within_lease(self.settings)

    def _may_judge(self, now: datetime) -> bool:
        """Return True once the database has answered, without a gap, for a whole lease by its own clock: while it was
        unavailable or frozen no worker could send a heartbeat, and this query may be answered before waiting
        heartbeats.

        Args:
            now: start of the transaction that will judge.
        """
        lease = timedelta(seconds=self.settings.lease_seconds)
        if self._looked_at is None or not timedelta() <= now - self._looked_at <= lease / 2:
            self._steady_since = now
        self._looked_at = now
        return now - self._steady_since > lease

    def _lose_workers(self) -> None:
        with self.engine.begin() as connection:
            if not self._may_judge(connection.execute(NOW).scalar_one()):
                return
            for worker in connection.execute(LOSE_WORKERS, {"lease": self.settings.lease_seconds}):
                log.warning("worker_lost", worker=str(worker.id), name=worker.name, last_seen=str(worker.last_seen))

    def _give_back_orphans(self) -> int:
        with autocommit(self.engine).connect() as connection:
            orphans = connection.execute(ORPHANED, {"lease": self.settings.lease_seconds, "most": BATCH}).all()
        for orphan in orphans:
            error = {
                "type": "worker_lost",
                "message": f"The worker {orphan.name} was lost while it ran the task "
                f"(last heartbeat {orphan.last_seen.isoformat(timespec='seconds')}).",
            }
            with self.engine.begin() as connection:
                state = lifecycle.release(
                    connection, orphan.task_id, orphan.claim, how="lost", charged=False, result={"error": error}
                )
                event = event_just_ended(connection, orphan.task_id)
            self.monitors.report(event)
            log.warning("orphan_given_back", task=str(orphan.task_id), claim=orphan.claim, state=state and str(state))
        return len(orphans)
