"""Stops children that work on what nobody wants any more: a cancelled task, or one whose claim is lost.

First politely, by the signal that also tells of a soft time limit: it reaches a sandboxed call and a model call alike,
and the child writes its record itself. A child that has not ended when the grace is over is killed; the main process
writes its record then.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import structlog
from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

log = structlog.get_logger(__name__)

UNWANTED = text(
    """
    SELECT h.id, s.claim = h.claim AND s.state = 'running' AS asked_to_stop
        FROM jsonb_to_recordset(:held) AS h (id text, task_id uuid, claim integer)
        JOIN task_status s ON s.task_id = h.task_id AND s.claim >= h.claim
        WHERE s.claim > h.claim OR s.state <> 'running' OR s.cancel_requested
    """
).bindparams(bindparam("held", type_=JSONB))


class Interrupter:
    """Looks at what the children of a prefork pool work on.

    Args:
        grace: seconds between asking a child to stop and killing it.
    """

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self._asked: dict[str, float] = {}
        self._ended: set[str] = set()

    def look(self, connection: Connection, requests: Sequence[Any]) -> None:
        """Interrupts those of the active requests that are unwanted."""
        working = {str(request.id): request for request in requests if request.worker_pid}
        held = [
            {"id": name, "task_id": request.kwargs["task_id"], "claim": int(request.kwargs["claim"]) + 1}
            for name, request in working.items()
        ]
        found = connection.execute(UNWANTED, {"held": held}).all() if held else []
        unwanted: dict[str, bool] = {row.id: row.asked_to_stop for row in found}
        # A child whose task has ended may be done, and not heard yet: only what is there at the next look still works.
        due = {name for name, asked_to_stop in unwanted.items() if asked_to_stop or name in self._ended}
        self._ended = {name for name, asked_to_stop in unwanted.items() if not asked_to_stop}
        self._asked = {name: since for name, since in self._asked.items() if name in due}
        for name in due:
            self._interrupt(name, working[name])

    def _interrupt(self, name: str, request: Any) -> None:
        asked = self._asked.setdefault(name, time.monotonic())
        forced = time.monotonic() - asked >= self.grace
        log.info("interrupting", task=request.kwargs["task_id"], forced=forced)
        with suppress(ProcessLookupError):
            os.kill(request.worker_pid, signal.SIGKILL if forced else signal.SIGUSR1)
