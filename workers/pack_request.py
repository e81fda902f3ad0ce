"""A pack in the worker's main process: the events and time limits of its tasks, and what becomes of those not run.

To Celery it is one request. The slot writes its progress to a cell (`workers.cells`). If the slot dies, is stuck or
stops early, the heartbeat's thread records the ends that are in the cell, charges the task that was running if it was
the cause, and gives back the others.
"""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any
from uuid import UUID
from weakref import WeakSet, finalize, ref

import structlog
from billiard.exceptions import SoftTimeLimitExceeded, Terminated, WorkerLostError
from celery.exceptions import TaskRevokedError
from celery.worker.state import task_ready, task_reserved

from workers import pack
from workers.cells import CELLS, Cell, Progress
from workers.heartbeat import WORKER_ID, LostChild, keep_active, report_lost
from workers.pack import Report
from workers.request import STOPPED, Request
from workers.run_messages import Entry

log = structlog.get_logger(__name__)

STUCK_SECONDS = 0.5
"""Time after which a task of a pack is not short: the others are given back, to run elsewhere."""
LONG_SECONDS = 1.0
"""The same for a whole pack."""
BEHIND_OTHER = "Another task of its pack took long."

_free = list(range(CELLS))
_owners = itertools.count(1)
_running: WeakSet[PackRequest] = WeakSet()


def strategy(task: Any, app: Any, consumer: Any, **_: Any) -> Callable[..., None]:
    """Return the handler of a pack's message, in place of Celery's: its events are about a single task."""

    def handle(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> None:
        request = PackRequest(
            message,
            on_ack=ack,
            on_reject=reject,
            app=app,
            hostname=consumer.hostname,
            eventer=consumer.event_dispatcher,
            task=task,
            connection_errors=consumer.connection_errors,
            body=message.body,
            headers=message.headers,
            decoded=False,
        )
        request.announce()
        task_reserved(request)
        for callback in callbacks or ():
            callback(request)
        consumer.on_task_request(request)

    return handle


def check() -> None:
    """Look at all running packs: see `PackRequest.check`."""
    for request in tuple(_running):
        request.check()


def stop_all() -> None:
    """Let no pack begin another task: the worker stops."""
    for request in tuple(_running):
        request.stop(STOPPED)


def give_back_all() -> None:
    """Give back what packs still hold, and record the ends that their slots have not committed: the pool has ended."""
    for request in tuple(_running):
        request.give_back(STOPPED)


class PackRequest(Request):
    """The request of a pack. See `workers.request.Request`.

    Attributes:
        entries: its tasks.
    """

    def __init__(self, message: Any, **options: Any) -> None:
        super().__init__(message, **options)
        first, headers = self.kwargs, self.request_dict
        listed = [[first["task_id"], first["claim"], *headers["timelimit"], headers["shadow"]], *headers["pack"]]
        self.entries = tuple(Entry(UUID(each[0]), *each[1:]) for each in listed)
        self._cell: Cell | None = None
        self._handled: set[int] = set()
        self._began: set[int] = set()
        self._signals: dict[int, str] = {}
        self._why_stopped = BEHIND_OTHER
        self._accepted_at = math.inf

    def announce(self) -> None:
        """Send the events that Celery sends for a message."""
        for entry in self.entries:
            self._send(
                "task-received",
                entry,
                name=entry.agent_name,
                args="",
                kwargs=f"task_id={entry.task_id} claim={entry.claim}",
                root_id=entry.message_id,
                parent_id=None,
                retries=0,
                eta=None,
                expires=None,
            )

    # ------------------------------------------------------------------------------------------- what Celery calls

    def execute_using_pool(self, pool: Any, **_: Any) -> Any:
        """Send the pack to a slot."""
        if not _free:
            # Celery then takes no slot for it. The tasks are published again.
            task_ready(self)
            self.acknowledge()
            raise TaskRevokedError(self.id)
        number = _free.pop()
        self._cell = Cell(number, next(_owners) % 2**32)
        self._cell.open()
        _running.add(self)
        # Also if Celery forgets the request, because the broker was away.
        self._leave = finalize(self, _free.append, number)
        result = pool.apply_async(
            pack.run,
            args=(self.entries, WORKER_ID, number, self._cell.owner),
            accept_callback=self.on_accepted,
            callback=self.on_success,
            error_callback=self.on_failure,
            correlation_id=self.id,
        )
        self._apply_result = ref(result) if result is not None else None
        return result

    def send_event(self, type: str, **fields: Any) -> None:
        """Send nothing: Celery's events are about the whole pack."""

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Handle the beginning of the pack in its slot."""
        self._accepted_at = time_accepted
        super().on_accepted(pid, time_accepted)

    def on_success(self, reports: list[Report], **_: Any) -> None:
        """Handle the end of the pack: the slot says what became of each task that it began."""
        self._end()
        for report in reports:
            if report.place not in self._handled:
                self._handle(report)
        # It was asked to begin no other task.
        self._give_back(self._open(), self._why_stopped, died=False)
        self._close()

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """Handle a slot that died, or failed between two tasks."""
        self._end()
        exception = getattr(exc_info.exception, "exc", exc_info.exception)
        running = self._progress().running
        at_limit = isinstance(exception, SoftTimeLimitExceeded)
        if isinstance(exception, Terminated) or self._already_cancelled:
            why, charged = STOPPED, False
        elif running in self._signals and (why := self._signals[running]):
            charged = at_limit = True
        elif isinstance(exception, WorkerLostError):
            why, charged = f"The process that ran the task died: {exception}", True
        else:
            why, charged = f"The minion failed outside the task: {exception!r}"[:500], True
        rest = self._open()
        self._give_back([index for index in rest if index != running], why, died=True)
        if running in rest:
            self._give_back([running], why, charged=charged, at_limit=at_limit, died=True)
        self._close()

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Do nothing: `check` enforces the limits of each task."""

    def _announce_cancelled(self, emit_retry: bool = True) -> None:
        """Keep the tasks active while their slot stops; Celery no longer counts the request as active."""
        for task, _ in self.held:
            keep_active(task)
        task_ready(self)
        self._already_cancelled = True

    # ------------------------------------------------------------------------------------- what other modules call

    @property
    def held(self) -> list[tuple[str, int]]:
        """The tasks that are not given back, with their claims."""
        return [(str(self.entries[index].task_id), self.entries[index].claim + 1) for index in self._open()]

    @property
    def current(self) -> tuple[str, int] | None:
        """The task that is running, with its claim."""
        running = self._progress().running
        if running is None or running in self._handled:
            return None
        return str(self.entries[running].task_id), self.entries[running].claim + 1

    def stop(self, why: str) -> None:
        """Ask the slot to begin no other task."""
        self._why_stopped = why
        if self._cell is not None:
            self._cell.stop()

    def give_back(self, why: str) -> None:
        """Give back all tasks that the pack holds, uncharged."""
        self._give_back(self._open(), why, died=True)

    def check(self) -> None:
        """Enforce the limits of the task that is running, and give back the others if it is not short."""
        progress = self._progress()
        if progress.last is None:
            return
        now = time.monotonic()
        seconds = now - progress.since
        if progress.running is not None and (seconds >= STUCK_SECONDS or now - self._accepted_at >= LONG_SECONDS):
            self._detach()
        # The limits also bound the time that its record takes.
        entry = self.entries[progress.last]
        if seconds >= entry.time_limit:
            why = f"The task ran longer than its hard time_limit of {entry.time_limit:g} s and was killed."
            self._signal(progress.last, signal.SIGKILL, why)
        elif seconds >= entry.soft_time_limit:
            self._signal(progress.last, signal.SIGUSR1, "")

    # -------------------------------------------------------------------------------------------------------------

    def _detach(self) -> None:
        """Give back all tasks but the one that is running."""
        self.stop(BEHIND_OTHER)
        # Read after the request to stop: the next task may just have begun.
        progress = self._progress()
        assert progress.last is not None
        self._give_back([index for index in self._open() if index != progress.last], BEHIND_OTHER, died=False)
        self._send_started(progress.last, time.time() - (time.monotonic() - progress.since))

    def _signal(self, running: int, number: signal.Signals, why: str) -> None:
        """Send each signal once for a task. Other pools than prefork share this process, and have no limits."""
        if self._signals.get(running) == why or self.worker_pid in (None, os.getpid()):
            return
        self._signals[running] = why
        log.warning("time_limit", task=str(self.entries[running].task_id), signal=number.name)
        self.signal(number)

    def _progress(self) -> Progress:
        # The heartbeat's thread asks too, and the cell may be given up in between.
        cell = self._cell
        return cell.read(len(self.entries)) if cell else Progress(None, None, 0.0)

    def _open(self) -> list[int]:
        return [index for index in range(len(self.entries)) if index not in self._handled]

    def _end(self) -> None:
        task_ready(self)
        self.acknowledge()
        _running.discard(self)

    def _close(self) -> None:
        self._cell = None
        self._leave()

    def _handle(self, report: Report) -> None:
        """Send the events of a task that has ended."""
        entry = self.entries[report.place]
        if report.failure is not None:
            self._give_back([report.place], report.failure, charged=True, at_limit=report.at_limit, died=True)
            return
        self._handled.add(report.place)
        if report.began is not None:
            self._send_started(report.place, report.began)
        if report.event is not None:
            type, fields = report.event
            ran = {} if report.seconds is None else {"runtime": report.seconds}
            self._send(type, entry, name=entry.agent_name, **ran, **fields)

    def _send_started(self, index: int, at: float) -> None:
        if index not in self._began:
            self._began.add(index)
            self._send("task-started", self.entries[index], timestamp=at)

    def _send(self, type: str, entry: Entry, **fields: Any) -> None:
        if self.eventer and self.eventer.enabled and self.task.send_events:
            self.eventer.send(type, uuid=entry.message_id, **fields)

    def _give_back(
        self, indices: Iterable[int], why: str, *, charged: bool = False, at_limit: bool = False, died: bool
    ) -> None:
        progress, unsaved = self._progress(), self._cell.unsaved() if self._cell else []
        for index in indices:
            entry = self.entries[index]
            if progress.last is not None and index <= progress.last:
                self._send_started(index, time.time())
            if self._is_held_elsewhere(str(entry.task_id), entry.claim + 1):
                log.warning("duplicate_lost", message=entry.message_id, why=why)
            else:
                # A slot that died before the first task may have died of any.
                involved = died and (progress.last is None or index <= progress.last)
                keep_active(str(entry.task_id))
                report_lost(LostChild(entry.task_id, entry.claim + 1, why, charged, at_limit, involved, unsaved))
            self._handled.add(index)
