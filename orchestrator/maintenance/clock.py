"""Check of the database host's clock: after it is set back, earlier records seem to be in the future.

Leases, rate holds and the age of lost messages are measured by that clock. Without this loop a worker that dies while
the clock is set back an hour would count as alive for an hour.
"""

from __future__ import annotations

import structlog
from sqlalchemy import Engine

from orchestrator.loops.loop import Loop
from shared.settings import Settings
from shared.tasks import lifecycle

log = structlog.get_logger(__name__)


class Clock(Loop):
    """Searches once per lease for impossible times, and sets them to now."""

    name = "clock"

    def __init__(self, settings: Settings, engine: Engine) -> None:
        super().__init__()
        self.settings = settings
        self.engine = engine

    def run_once(self) -> float:
        """Check everything that is not finished."""
        with self.engine.begin() as connection:
            healed = lifecycle.heal_clock(connection)
        if healed:
            log.warning("clock_was_put_back", rows=healed)
        return self.settings.lease_seconds
