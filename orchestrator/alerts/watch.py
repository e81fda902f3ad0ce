"""The watch: looks for conditions and anomalies, and keeps the alerts. One orchestrator leads."""

from __future__ import annotations

import time

import structlog
from sqlalchemy import Connection, Engine

from orchestrator.alerts import anomalies, conditions, queues, store
from orchestrator.alerts.history import Hours, Verdict
from orchestrator.loops.leadership import Leadership
from orchestrator.loops.loop import Loop, seconds_within_lease
from shared.settings import Settings

log = structlog.get_logger(__name__)

EVERY_SECONDS = 15.0
TIDY_SECONDS = 3600.0


class AlertWatch(Loop):
    """Looks, and brings the alerts to what it has found. Whatever a former leader writes is safe to repeat."""

    name = "alert_watch"

    def __init__(self, settings: Settings, engine: Engine) -> None:
        super().__init__()
        self.settings = settings
        self.engine = engine
        self.leadership = Leadership(settings, self.name)
        self.every = min(EVERY_SECONDS, seconds_within_lease(settings) * 15)
        self._hours = Hours()
        self._look_at = self._tidy_at = 0.0
        self._behind = True

    def run_once(self) -> float:
        """Look at what is due, if this orchestrator leads."""
        pause = seconds_within_lease(self.settings)
        if not self.leadership.held():
            self._forget()
            return pause
        now = time.monotonic()
        if now >= self._look_at:
            self.look()
            self._look_at = now + self.every
            self._behind = True
        if self._behind:
            self._behind = self.judge()
            return 0.0 if self._behind else pause
        if now >= self._tidy_at:
            self._tidy_at = now + TIDY_SECONDS
            with self.engine.begin() as connection:
                store.tidy(connection)
        return pause

    def close(self) -> None:
        """Give up the lead."""
        self.leadership.release()

    def look(self) -> None:
        """Look for conditions, and remember the ages of the queues."""
        with self.engine.begin() as connection:
            pending = queues.read(connection, self.settings)
            queues.remember(connection, pending)
            found = [*conditions.of_queues(pending, self.settings), *conditions.find(connection, self.settings)]
            changes = store.sync(connection, conditions.NAMES, found, conditions.QUIET)
        _tell(changes)

    def judge(self) -> bool:
        """Read some of the hours that are complete, and judge the last one. Return whether there are more."""
        try:
            with self.engine.connect() as connection:
                hour, verdicts = self._hours.advance(connection)
            if hour is not None:
                with self.engine.begin() as connection:
                    changes = self._keep(connection, verdicts, hour)
                _tell(changes)
        except Exception:
            self._forget()
            raise
        return self._hours.behind

    def _forget(self) -> None:
        """Read everything again: hours were added in part, their verdicts were lost, or another led in between."""
        self._hours = Hours()
        self._behind = True

    def _keep(self, connection: Connection, verdicts: list[Verdict], hour: int) -> list[store.Change]:
        found = anomalies.found(connection, verdicts, hour)
        return store.sync(connection, anomalies.NAMES, list(found), anomalies.QUIET)


def _tell(changes: list[store.Change]) -> None:
    for change in changes:
        tell = log.warning if change.state == "firing" else log.info
        tell("alert", rule=change.rule, subject=change.subject, state=change.state)
