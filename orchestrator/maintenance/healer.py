"""The healer: waiting tasks that have nothing left to wait for continue, whatever failed to wake them."""

from __future__ import annotations

from uuid import UUID

import structlog
from sqlalchemy import Engine

from orchestrator.loops.loop import Loop, seconds_within_lease
from shared.settings import Settings
from shared.tasks import lifecycle

log = structlog.get_logger(__name__)


class Healer(Loop):
    """Wake tasks without an open wait, and tasks whose turn in a conversation has come."""

    name = "healer"

    def __init__(self, settings: Settings, engine: Engine) -> None:
        super().__init__()
        self.settings = settings
        self.engine = engine
        self._waits_looked_at: UUID | None = None

    def run_once(self) -> float:
        """Look at one batch of waits, and one of turns."""
        with self.engine.begin() as connection:
            woken, self._waits_looked_at = lifecycle.heal_waits(connection, after=self._waits_looked_at)
            if woken:
                log.warning("waits_healed", tasks=woken)
            lifecycle.heal_turns(connection)
        return seconds_within_lease(self.settings)
