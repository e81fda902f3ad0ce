"""The resumer: tasks continue after the stop that held them has been lifted."""

from __future__ import annotations

from uuid import UUID

import structlog
from sqlalchemy import Engine

from orchestrator.loops.loop import Loop, seconds_within_lease
from shared.database.connections import autocommit
from shared.settings import Settings
from shared.tasks import stops

log = structlog.get_logger(__name__)

BATCH = 1000
BETWEEN_BATCHES_SECONDS = 0.25


class Resumer(Loop):
    """Wakes stopped tasks in batches, so that the end of a stop is no rush on the database."""

    name = "resumer"

    def __init__(self, settings: Settings, engine: Engine) -> None:
        super().__init__()
        self.settings = settings
        self.statements = autocommit(engine)
        self._looked_at: UUID | None = None

    def run_once(self) -> float:
        """Check one batch of stopped tasks."""
        with self.statements.connect() as connection:
            woken, self._looked_at = stops.wake(connection, after=self._looked_at, limit=BATCH)
        if woken:
            log.info("resumed", tasks=woken)
        return seconds_within_lease(self.settings) if self._looked_at is None else BETWEEN_BATCHES_SECONDS
