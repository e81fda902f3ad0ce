"""The rescuer: recovers tasks that were lost on the way.

- A queued task whose message is presumed lost is published again, under the same claim.
- A task whose deadline has passed expires.
- A task whose budget of seconds is used up fails; one that waits for a budget with room again continues.
- A waiting task that has nothing left to wait for continues, and so does one whose predecessor has ended.
"""

from __future__ import annotations

from uuid import UUID

import structlog
from celery import Celery
from sqlalchemy import Connection, Engine, text

from orchestrator.loops.loop import Loop
from orchestrator.monitors import Monitors
from shared.broker import BROKER_AWAY, publish
from shared.monitor_events import event_just_ended
from shared.notifications import make_redis
from shared.settings import Settings
from shared.tasks import budgets, lifecycle

log = structlog.get_logger(__name__)

OVERDUE = text(
    "SELECT task_id FROM task_status WHERE deadline < now() "
    "AND state NOT IN ('succeeded', 'failed', 'cancelled', 'expired') ORDER BY task_id LIMIT 1000"
)


class Rescuer(Loop):
    """Searches for lost tasks."""

    name = "rescuer"

    def __init__(self, settings: Settings, engine: Engine, app: Celery, monitors: Monitors) -> None:
        super().__init__()
        self.settings = settings
        self.engine = engine
        self.app = app
        self.monitors = monitors
        self._waits_looked_at: UUID | None = None

    def round(self) -> float:
        """Run every check once."""
        self._expire_overdue()
        self._keep_budgets()
        self._heal_waits()
        self._republish()
        return min(1.0, self.settings.lease_seconds / 5)

    def _expire_overdue(self) -> None:
        for task_id in self._overdue():
            with self.engine.begin() as connection:
                lifecycle.expire(connection, task_id)
                event = event_just_ended(connection, task_id)
            self.monitors.tell(event)
            log.info("expired", task=str(task_id))

    def _keep_budgets(self) -> None:
        with self.engine.begin() as connection:
            late = budgets.overtime(connection)
        for task_id, error in late:
            with self.engine.begin() as connection:
                failed = budgets.fail_overtime(connection, task_id, error)
                event = event_just_ended(connection, task_id)
            self.monitors.tell(event)
            if failed:
                log.info("budget_of_seconds_over", task=str(task_id))
        with self.engine.begin() as connection:
            budgets.wake_funded(connection)

    def _heal_waits(self) -> None:
        with self.engine.begin() as connection:
            woken, self._waits_looked_at = lifecycle.heal_waits(connection, after=self._waits_looked_at)
            if woken:
                log.warning("waits_healed", tasks=woken)
            lifecycle.heal_turns(connection)

    def _overdue(self) -> list[UUID]:
        with self.engine.connect() as connection:
            return list(connection.scalars(OVERDUE))

    def _republish(self) -> None:
        """Publish lost messages. While the broker is unavailable nothing is published; other checks still run."""
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
