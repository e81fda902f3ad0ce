"""Stops children that work on unwanted tasks: cancelled ones, and those whose claim is lost.

The first attempt is the signal that also announces a soft time limit: it interrupts sandboxed calls and model calls
alike, and the child writes its record itself. A child that is still running when the grace period is over is killed;
the main process then writes its record.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from typing import Any

import structlog
from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

log = structlog.get_logger(__name__)

# A child that has already recorded its outcome is done, even if the main process does not know it yet.
UNWANTED = text(
    """
    SELECT h.id, s.claim = h.claim AND s.state = 'running' AS unrecorded
        FROM jsonb_to_recordset(:held) AS h (id text, task_id uuid, claim integer)
        JOIN task_status s ON s.task_id = h.task_id
        JOIN executions e ON e.task_id = h.task_id AND e.claim = h.claim
        WHERE s.claim = h.claim AND s.state = 'running' AND s.cancel_requested OR e.outcome IN ('lost', 'expired')
    """
).bindparams(bindparam("held", type_=JSONB))


class Interrupter:
    """Checks the tasks that the children of a prefork pool are running.

    Args:
        grace: seconds between asking a child to stop and killing it.
    """

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self._asked: dict[str, float] = {}

    def check(self, connection: Connection, requests: Sequence[Any]) -> None:
        """Interrupt the active requests that are unwanted."""
        # A message may be delivered twice; each child is then checked separately.
        running = [(request, request.current) for request in requests if request.worker_pid]
        working = {
            f"{current[0]}.{current[1]} {request.worker_pid}": (request, *current)
            for request, current in running
            if current
        }
        held = [{"id": name, "task_id": task, "claim": claim} for name, (_, task, claim) in working.items()]
        found = connection.execute(UNWANTED, {"held": held}).all() if held else []
        unwanted: dict[str, bool] = {row.id: row.unrecorded for row in found}
        self._asked = {name: since for name, since in self._asked.items() if name in unwanted}
        for name, unrecorded in unwanted.items():
            request, task, claim = working[name]
            # A pack may have begun its next task since.
            if request.current == (task, claim):
                self._interrupt(name, request, unrecorded=unrecorded)

    def _interrupt(self, name: str, request: Any, *, unrecorded: bool) -> None:
        """Ask the child once to stop; kill it only if it is certain to be still running this request."""
        if name not in self._asked:
            self._asked[name] = time.monotonic()
            self._send(request, signal.SIGUSR1)
        elif unrecorded and time.monotonic() - self._asked[name] >= self.grace:
            self._send(request, signal.SIGKILL)

    def _send(self, request: Any, number: signal.Signals) -> None:
        log.info("interrupting", task=request.current and request.current[0], signal=number.name)
        request.signal(number)
