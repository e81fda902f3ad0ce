"""The statistician: counts ended work and reads the gauges, for all orchestrators."""

from __future__ import annotations

import json
import time
from typing import Any

import structlog
from sqlalchemy import Engine, text

from orchestrator.loops.leadership import Leadership
from orchestrator.loops.loop import Loop, seconds_within_lease
from orchestrator.observe import gauges
from orchestrator.observe.counting import count_ends
from orchestrator.observe.tally import Places
from shared.database.connections import autocommit
from shared.settings import Settings

log = structlog.get_logger(__name__)

EVERY_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 60.0
SHARE = 0.01
"""Of a core: reading the gauges takes no more, but for what a minute between two readings takes."""
LATE_SECONDS = 60.0
HOURS_DAYS = 90
TIDY_SECONDS = 3600.0

STORE = text("UPDATE statistics_state SET gauges = CAST(:gauges AS jsonb), gauges_at = now()")
TIDY = text("DELETE FROM statistics WHERE grain = 'hour' AND bucket < now() - :days * interval '1 day'")
OLDEST = text(
    """
    SELECT 'process ' || pid || ' (' || COALESCE(NULLIF(application_name, ''), usename, backend_type) || ')' AS holder,
           extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds
        FROM pg_stat_activity WHERE backend_xid IS NOT NULL
    UNION ALL
    SELECT 'prepared transaction ' || gid, extract(epoch FROM clock_timestamp() - prepared)::float8
        FROM pg_prepared_xacts
    ORDER BY seconds DESC LIMIT 1
    """
)


class Statistician(Loop):
    """Counts what has ended since its last round. One orchestrator leads; whatever a former leader writes is safe."""

    name = "statistician"

    def __init__(self, settings: Settings, engine: Engine) -> None:
        super().__init__()
        self.settings = settings
        self.engine = engine
        self.leadership = Leadership(settings, self.name)
        self.every = min(EVERY_SECONDS, seconds_within_lease(settings) * 5)
        self._places = Places()
        self._count_at = self._gauges_at = self._tidy_at = self._warn_at = 0.0

    def run_once(self) -> float:
        """Make one pass, if this orchestrator leads."""
        pause = seconds_within_lease(self.settings)
        if not self.leadership.held():
            return pause
        now = time.monotonic()
        if now >= self._count_at:
            progress = count_ends(self.engine, self._places)
            self._warn_if_late(progress.age)
            if not progress.complete:
                return 0.0
            self._count_at = now + self.every
        if now >= self._gauges_at:
            self._gauges_at = now + self._read_gauges()
        if now >= self._tidy_at:
            self._tidy_at = now + TIDY_SECONDS
            with self.engine.begin() as connection:
                connection.execute(TIDY, {"days": HOURS_DAYS})
        return pause

    def close(self) -> None:
        """Give up the lead."""
        self.leadership.release()

    def _read_gauges(self) -> float:
        """Read and store the gauges; return the seconds until they should be read again."""
        began = time.monotonic()
        with autocommit(self.engine).connect() as connection:
            values: Any = gauges.read(connection, self.settings)
            connection.execute(STORE, {"gauges": json.dumps(values)})
        took = time.monotonic() - began
        return min(max(self.every, took / SHARE), LONGEST_PAUSE_SECONDS)

    def _warn_if_late(self, age: float) -> None:
        if age < LATE_SECONDS or time.monotonic() < self._warn_at:
            return
        self._warn_at = time.monotonic() + LATE_SECONDS
        with autocommit(self.engine).connect() as connection:
            oldest = connection.execute(OLDEST).one_or_none()
        log.warning(
            "statistics_late",
            age_seconds=round(age),
            held_by=oldest and oldest.holder,
            for_seconds=oldest and round(oldest.seconds or 0),
        )
