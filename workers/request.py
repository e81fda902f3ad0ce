"""Celery request that reports dead children to the worker's main process, and the end of a claim to monitors.

A dead child cannot write its record, so the main process writes it: see `workers.heartbeat`.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog
from billiard.exceptions import SoftTimeLimitExceeded, Terminated, TimeLimitExceeded, WorkerLostError
from celery.worker.request import Request as CeleryRequest
from celery.worker.state import active_requests, task_ready

from shared.monitor_events import MonitorEvent
from workers.heartbeat import keep_active, report_lost_child
from workers.monitoring import event_in

if TYPE_CHECKING:
    from workers.lane.host import Lane

log = structlog.get_logger(__name__)

OF_LOST_CHILDREN = ("task-failed", "task-retried", "task-cancelled")
STOPPED = "The worker received the signal to stop, and ended the task."


class Request(CeleryRequest):
    """Requests run in the main process's event loop, so they are small and must not wait for anything.

    Attributes:
        lane: the lane that runs the task, with the task's key in it; None: it runs in a slot of the pool.
        until: its hard time limit in the lane, by the monotonic clock.
    """

    lane: Lane | None = None
    key = 0
    until = 0.0

    @property
    def has_model(self) -> bool:
        """Return whether the task's agent calls a model, so that it spends its time waiting."""
        return bool(self.request_dict.get("has_model"))

    def signal(self, number: int) -> None:
        """Send a signal to whatever runs the task: SIGUSR1 interrupts it, SIGKILL ends it. From any thread."""
        if self.lane is not None:
            self.lane.signal(self.key, number)
        else:
            with suppress(ProcessLookupError):
                os.kill(self.worker_pid, number)

    def on_lost(self, why: str, *, charged: bool, at_limit: bool) -> None:
        """Handle a task that the lane lost or killed."""
        task_ready(self)
        self._report(why, charged=charged, at_limit=at_limit)

    @property
    def held(self) -> list[tuple[str, int]]:
        """The tasks of the message that this worker holds, with their claims."""
        return [(str(self.kwargs["task_id"]), int(self.kwargs["claim"]) + 1)]

    @property
    def current(self) -> tuple[str, int] | None:
        """The task that is running, with its claim."""
        return self.held[0]

    def send_event(self, type: str, **fields: Any) -> None:
        """Send the event that the child reported in place of Celery's success.

        Celery's events for a child that died are left out: the heartbeat sends one when the record is written.
        """
        if type == "task-succeeded":
            self._send_reported(event_in(fields["result"]), fields["runtime"])
        elif type not in OF_LOST_CHILDREN and not fields.get("terminated"):
            super().send_event(type, **fields)

    def _send_reported(self, event: MonitorEvent | None, runtime: float) -> None:
        if event is not None:
            ran = {} if event.type == "task-rejected" else {"runtime": runtime}
            super().send_event(event.type, name=self.name, **ran, **event.fields)

    def _announce_cancelled(self, emit_retry: bool = True) -> None:
        """Keep the task active while its child stops; Celery no longer counts the request as active."""
        keep_active(str(self.kwargs["task_id"]))
        super()._announce_cancelled(emit_retry=emit_retry)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Handle a child that was killed by a hard time limit."""
        super().on_timeout(soft, timeout)
        if not soft:
            self._report(
                f"The task ran longer than its hard time_limit of {timeout:g} s and was killed.", at_limit=True
            )

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """Handle a child that died: out of memory, a crash in native code, kill -9, or a request to end."""
        # billiard wraps errors that it raised itself.
        exception = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(exception, Terminated) or self._already_cancelled:
            self._report(STOPPED, charged=False)
        elif isinstance(exception, WorkerLostError):
            self._report(f"The process that ran the task died: {exception}")
        elif not isinstance(exception, TimeLimitExceeded):  # `on_timeout` has reported that
            at_limit = isinstance(exception, SoftTimeLimitExceeded)
            self._report(f"The minion failed outside the task: {exception!r}"[:500], at_limit=at_limit)
        return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def _report(self, why: str, *, charged: bool = True, at_limit: bool = False) -> None:
        if self._is_held_elsewhere(*self.held[0]):
            log.warning("duplicate_lost", message=self.id, why=why)
        else:
            report_lost_child(self.kwargs, why, charged=charged, at_limit=at_limit)

    def _is_held_elsewhere(self, task: str, claim: int) -> bool:
        """Return whether another request of this worker holds the claim.

        A message may be delivered twice, and the other child may hold the claim. If the dead child held it, the
        orchestrator finds a task that its worker does not know about.
        """
        return any(other is not self and (task, claim) in other.held for other in tuple(active_requests))
