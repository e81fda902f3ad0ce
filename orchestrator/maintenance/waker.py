"""The waker: makes tasks pending when their time has come."""

from __future__ import annotations

import structlog
from sqlalchemy import Engine

from orchestrator.loops.loop import Loop
from shared.database.connections import autocommit
from shared.tasks import lifecycle

log = structlog.get_logger(__name__)

BATCH = 1000
EVERY_SECONDS = 0.25


class Waker(Loop):
    """Wakes scheduled tasks that are due, tasks after their back-off, and tasks with nothing left to wait for."""

    name = "waker"

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.statements = autocommit(engine)

    def run_once(self) -> float:
        """Wake one batch."""
        with self.statements.connect() as connection:
            woken = lifecycle.wake_due(connection, limit=BATCH)
        if woken:
            log.debug("woken", tasks=woken)
        return 0.0 if woken == BATCH else EVERY_SECONDS
