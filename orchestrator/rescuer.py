"""The rescuer: what was lost on the way comes back.

- A worker that has not beaten for a lease is lost; its tasks go back to pending.
- A running task that its live worker does not know of goes back too.
- A queued task whose message is presumed lost is published again, under the same claim.
- A task whose deadline has passed expires.
- A task whose budget of seconds is over fails, and one that waits for a budget which has room again goes on.
- A waiting task that has nothing left to wait for goes on, and so does one whose turn in a conversation has come.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import redis
import structlog
from celery import Celery
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy import Connection, Engine, text

from orchestrator.loop import Loop
from shared import budgets, lifecycle
from shared.broker import publish
from shared.hints import make_redis
from shared.settings import Settings

log = structlog.get_logger(__name__)

BROKER_AWAY = (redis.RedisError, BrokerError, OSError)

NOW = text("SELECT now()")
LOSE_WORKERS = text(
    "UPDATE workers SET status = 'lost', busy = 0, active = '{}', idle_since = NULL "
    "WHERE status = 'online' AND last_seen < now() - :lease * interval '1 s' RETURNING id, name, last_seen"
)
ORPHANED = text(
    """
    SELECT s.task_id, s.claim, w.name, w.status, w.last_seen FROM task_status s JOIN workers w ON w.id = s.worker_id
        WHERE s.state = 'running'
          AND (w.status <> 'online' OR (s.updated_at < w.last_seen - :lease * interval '1 s'
                                        AND NOT s.task_id::text = ANY (w.active)))
        ORDER BY s.task_id LIMIT 1000
    """
)
OVERDUE = text(
    "SELECT task_id FROM task_status WHERE deadline < now() "
    "AND state NOT IN ('succeeded', 'failed', 'cancelled', 'expired') ORDER BY task_id LIMIT 1000"
)


class Rescuer(Loop):
    """Looks for what was lost, several times within a lease."""

    name = "rescuer"

    def __init__(self, settings: Settings, engine: Engine, app: Celery) -> None:
        super().__init__()
        self.settings = settings
        self.engine = engine
        self.app = app
        self._looked_at: datetime | None = None
        self._steady_since = datetime.max.replace(tzinfo=UTC)

    def round(self) -> float:
        """One look at everything."""
        self._lose_workers()
        self._give_back_orphans()
        self._expire_overdue()
        self._keep_budgets()
        self._heal_waits()
        self._republish()
        return min(1.0, self.settings.lease_seconds / 5)

    def _may_judge(self, now: datetime) -> bool:
        """Not before the database has answered, without a gap, for a whole lease of its own clock: while it was away or
        stood still nobody could beat. What it is asked meanwhile may be answered before the beats that wait as well.

        Args:
            now: when the transaction that is going to judge began.
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

    def _give_back_orphans(self) -> None:
        with self.engine.connect() as connection:
            orphans = connection.execute(ORPHANED, {"lease": self.settings.lease_seconds}).all()
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
            log.warning("orphan_given_back", task=str(orphan.task_id), claim=orphan.claim, state=state and str(state))

    def _expire_overdue(self) -> None:
        for task_id in self._overdue():
            with self.engine.begin() as connection:
                lifecycle.expire(connection, task_id)
            log.info("expired", task=str(task_id))

    def _keep_budgets(self) -> None:
        with self.engine.connect() as connection:
            late = budgets.overtime(connection)
        for task_id, error in late:
            with self.engine.begin() as connection:
                if budgets.fail_overtime(connection, task_id, error):
                    log.info("budget_of_seconds_over", task=str(task_id))
        with self.engine.begin() as connection:
            budgets.wake_funded(connection)

    def _heal_waits(self) -> None:
        with self.engine.begin() as connection:
            if woken := lifecycle.heal_waits(connection):
                log.warning("waits_healed", tasks=woken)
            lifecycle.heal_turns(connection)

    def _overdue(self) -> list[UUID]:
        with self.engine.connect() as connection:
            return list(connection.scalars(OVERDUE))

    def _republish(self) -> None:
        """While the broker is away there is nothing to publish, and everything else is still to be looked at."""
        try:
            with self.engine.begin() as connection:
                again = self._presumed_lost(connection)
            if again:
                publish(self.app, again)
                log.warning("published_again", tasks=len(again))
        except BROKER_AWAY as error:
            log.warning("broker_away", reason=str(error)[:300])

    def _presumed_lost(self, connection: Connection) -> list[lifecycle.Dispatched]:
        patience = self.settings.lost_message_seconds
        queues = lifecycle.stalled_queues(connection, patience=patience)
        if not queues:
            return []
        with make_redis() as broker:
            empty = [queue for queue in queues if broker.llen(queue) == 0]
        return lifecycle.republish(connection, lease=self.settings.lease_seconds, patience=patience, empty_queues=empty)
