"""The expirer: tasks whose deadline has passed end as expired."""

from __future__ import annotations

from uuid import UUID

import structlog
from sqlalchemy import Engine, text

from orchestrator.loops.loop import Loop, seconds_within_lease
from orchestrator.monitors import Monitors
from shared.database.connections import autocommit
from shared.monitor_events import event_just_ended
from shared.settings import Settings
from shared.tasks import lifecycle

log = structlog.get_logger(__name__)

OVERDUE = text(
    "SELECT task_id FROM task_status WHERE deadline < now() "
    "AND state NOT IN ('succeeded', 'failed', 'cancelled', 'expired') ORDER BY task_id LIMIT 1000"
)


class Expirer(Loop):
    """End tasks that are past their deadline."""

    name = "expirer"

    def __init__(self, settings: Settings, engine: Engine, monitors: Monitors) -> None:
        super().__init__()
        self.settings = settings
        self.engine = engine
        self.monitors = monitors

    def run_once(self) -> float:
        """End one batch, each task in its own transaction."""
        for task_id in self._overdue():
            with self.engine.begin() as connection:
                lifecycle.expire(connection, task_id)
                event = event_just_ended(connection, task_id)
            self.monitors.report(event)
            log.info("expired", task=str(task_id))
        return seconds_within_lease(self.settings)

    def _overdue(self) -> list[UUID]:
        with autocommit(self.engine).connect() as connection:
            return list(connection.scalars(OVERDUE))
