"""A loop of the orchestrator: a thread that repeats its round, even after an error in one."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

import psycopg
import structlog
from sqlalchemy.exc import TimeoutError as PoolTimeout

from minions.backoff import exponential, jittered
from shared.broker import BROKER_AWAY
from shared.database.connections import is_transient, reason
from shared.settings import Settings
from shared.telemetry import report

log = structlog.get_logger(__name__)

LONGEST_PAUSE = 5.0
# Exceptions of the broker's and the listener's connections when the other side is gone.
# PoolTimeout: all connections of the pool are in use, because the database hangs.
AWAY = (psycopg.OperationalError, PoolTimeout, *BROKER_AWAY)


def seconds_within_lease(settings: Settings) -> float:
    """Return the pause of loops that must do several rounds within a lease."""
    return min(1.0, settings.lease_seconds / 5)


class Loop(ABC):
    """One duty of the orchestrator.

    Attributes:
        name: for the log and the thread.
    """

    name: str

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    @abstractmethod
    def run_once(self) -> float:
        """Do the pending work; return the seconds until the next round."""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the loop to end, and wait for its current round."""
        self.stopping.set()
        self._thread.join(timeout=LONGEST_PAUSE)
        self.close()

    def close(self) -> None:  # noqa: B027 - most loops hold nothing
        """Release the loop's resources."""

    def wait(self, seconds: float) -> None:
        """Wait between rounds."""
        self.stopping.wait(seconds)

    def _run(self) -> None:
        failures = 0
        while not self.stopping.is_set():
            try:
                due = self.run_once()
                self.wait(due)
                failures = 0
            except Exception as error:
                self._log_failure(error)
                failures += 1
                self.stopping.wait(jittered(exponential(failures, first=0.1, longest=LONGEST_PAUSE)))

    def _log_failure(self, error: Exception) -> None:
        if is_transient(error) or isinstance(error, AWAY):
            log.warning("round_failed", loop=self.name, reason=reason(error))
            return
        log.warning("round_failed", loop=self.name, reason=reason(error), kind=type(error).__name__, exc_info=True)
        report(error)
