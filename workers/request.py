"""A Celery request that tells the worker's main process about children that died or were killed.

A child that is gone cannot write its record, so the main process does: see `workers.heartbeat`.
"""

from __future__ import annotations

from typing import Any

import structlog
from billiard.exceptions import SoftTimeLimitExceeded, Terminated, TimeLimitExceeded, WorkerLostError
from celery.worker.request import Request as CeleryRequest
from celery.worker.state import active_requests

from workers.heartbeat import report_lost_child

log = structlog.get_logger(__name__)


class Request(CeleryRequest):
    """Kept tiny: these run in the main process's event loop, and must not wait for anything."""

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """A hard limit killed the child."""
        super().on_timeout(soft, timeout)
        if not soft:
            self._report(
                f"The task ran longer than its hard time_limit of {timeout:g} s and was killed.", at_limit=True
            )

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """The child died: out of memory, a crash in native code, kill -9; or it was told to end."""
        # billiard wraps what it raised itself.
        exception = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(exception, Terminated) or self._already_cancelled:
            self._report("The worker was told to stop, and ended the task.", charged=False)
        elif isinstance(exception, WorkerLostError):
            self._report(f"The process that ran the task died: {exception}")
        elif not isinstance(exception, TimeLimitExceeded):  # `on_timeout` has told that
            at_limit = isinstance(exception, SoftTimeLimitExceeded)
            self._report(f"The minion failed outside the task: {exception!r}"[:500], at_limit=at_limit)
        return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def _report(self, why: str, *, charged: bool = True, at_limit: bool = False) -> None:
        # A message may come twice, and then the other child may hold the claim. Where it was the one that died, the
        # rescuer finds a task that its worker does not know of.
        if any(other.id == self.id and other is not self for other in tuple(active_requests)):
            log.warning("duplicate_lost", message=self.id, why=why)
        else:
            report_lost_child(self.kwargs, why, charged=charged, at_limit=at_limit)
