"""The clock of the database's host: when it is put back, what was recorded before lies in the future.

Leases, patience and holds are measured by that clock. Without this loop a worker that dies as the clock goes back an
hour would count as alive for an hour.
"""

from __future__ import annotations

import structlog
from sqlalchemy import Engine

from orchestrator.loop import Loop
from shared import lifecycle
from shared.settings import Settings

log = structlog.get_logger(__name__)


class Clock(Loop):
    """Looks once in a lease for times that cannot be, and sets them to now."""

    name = "clock"

    def __init__(self, settings: Settings, engine: Engine) -> None:
        super().__init__()
        self.settings = settings
        self.engine = engine

    def round(self) -> float:
        """One look at everything that is not finished."""
        with self.engine.begin() as connection:
            healed = lifecycle.heal_clock(connection)
        if healed:
            log.warning("clock_was_put_back", rows=healed)
        return self.settings.lease_seconds
