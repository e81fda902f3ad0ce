"""A pack in its slot: short tasks, one after the other, each with its own claim, limits, journal and record.

The tasks are claimed together. Ends of tasks that have succeeded are committed together, about 10 ms after the first
of them; the notification that a task has ended follows its commit. Every other end is recorded on its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

import structlog
from celery.exceptions import SoftTimeLimitExceeded
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from shared.database.connections import as_json, close_engine, persistently, reason
from shared.errors import MinionError
from shared.monitor_events import find_execution
from shared.notifications import publish_finished, publish_progress
from shared.tasks import lifecycle
from shared.tasks.records import ExecutionResult
from shared.tasks.states import State
from workers import minion
from workers.cells import Cell
from workers.claiming import claim_task
from workers.meter import Meter
from workers.monitoring import event_of_claim
from workers.outcomes import ClaimLost, Succeeded
from workers.run_messages import Entry
from workers.task import ClaimedTask

log = structlog.get_logger(__name__)

GROUP_SECONDS = 0.01
"""The longest time from the end of a task until its commit begins, if the next task is no longer than the last."""
SMALL = 16 << 10
"""Characters of an end that is committed together with others."""


class Report(NamedTuple):
    """The end of a task, for the main process.

    Attributes:
        event: the type and the fields of the event for monitors; None if another process sends it.
        began, seconds: since the epoch, and its duration; None if it was not claimed.
        failure: the reason why it could not be recorded.
        at_limit: that was a time limit.
    """

    place: int
    event: tuple[str, dict[str, Any]] | None = None
    began: float | None = None
    seconds: float | None = None
    failure: str | None = None
    at_limit: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """The end of a task that has succeeded, before its commit."""

    index: int
    task: ClaimedTask
    result: ExecutionResult
    text: str
    began: float
    seconds: float


def run(entries: Sequence[Entry], worker_id: UUID, cell: int, owner: int) -> list[Report]:
    """Run a pack in a slot, with a cell that is for the pack with the number `owner`. See `Pack`."""
    try:
        return Pack(entries, worker_id, Cell(cell, owner)).run()
    except BaseException:
        # A limit may have struck inside the driver.
        close_engine()
        raise


class Pack:
    """Runs a pack.

    Args:
        entries: its tasks, in the order in which they run.
        worker_id: this worker's row.
        cell: shared with the main process, which may ask to begin no other task.
    """

    def __init__(self, entries: Sequence[Entry], worker_id: UUID, cell: Cell) -> None:
        self.entries = entries
        self.worker_id = worker_id
        self.cell = cell
        self._ends: list[End] = []
        self._group_due = 0.0
        self._reports: list[Report] = []

    def run(self) -> list[Report]:
        """Run the tasks. Those without a report were not begun."""
        claimed = self._claim()
        for index, entry in enumerate(self.entries):
            # In this order: the main process asks first and looks then, so both know which task is the last.
            self.cell.begin(index, time.monotonic())
            if self.cell.stopped:
                break
            with structlog.contextvars.bound_contextvars(task=str(entry.task_id), claim=entry.claim + 1):
                self._handle(index, claimed.get(entry.task_id))
            if self._ends and time.monotonic() + self._ends[-1].seconds >= self._group_due:
                self._commit()
        self._commit()
        return self._reports

    def _claim(self) -> dict[UUID, ClaimedTask]:
        wanted = [(str(entry.task_id), entry.claim) for entry in self.entries]
        try:
            rows = persistently(lifecycle.claim_pack, wanted, self.worker_id)
        except SoftTimeLimitExceeded:
            raise
        except (SQLAlchemyError, MinionError) as error:
            log.warning("not_claimed_together", reason=reason(error), tasks=len(wanted))
            return {}
        return {task.id: task for task in map(ClaimedTask.of, rows)}

    def _handle(self, index: int, task: ClaimedTask | None) -> None:
        """Run one task. Its failure must not concern the others."""
        began = time.monotonic()
        try:
            task = task or self._claim_alone(index)
            if task is None:
                self._report(index, "skipped")
                return
            with structlog.contextvars.bound_contextvars(agent=task.agent_name, capability=task.queue):
                self._work(index, task, began)
        except ClaimLost:
            self._recorded(index, None, began, time.monotonic() - began)
        except Exception as error:
            self._fail(index, error)

    def _claim_alone(self, index: int) -> ClaimedTask | None:
        # It may have to wait for a limit.
        self._commit()
        entry = self.entries[index]
        return claim_task(entry.task_id, entry.claim, self.worker_id)

    def _work(self, index: int, task: ClaimedTask, began: float) -> None:
        entry = self.entries[index]
        meter, journal = Meter(), minion.journal_of(task)
        log.debug("started", attempt=task.attempts + 1)
        outcome = minion.perform(task, journal, meter, (entry.time_limit, entry.soft_time_limit))
        if isinstance(outcome, Succeeded):
            result = minion.success(journal, outcome, meter)
            text = as_json(lifecycle.ended(task.id, task.claim, result))
            end = End(index, task, result, text, began, time.monotonic() - began)
            if len(end.text) <= SMALL and self._keep(end):
                return
            state = persistently(lifecycle.finish, task.id, task.claim, State.SUCCEEDED, result)
        else:
            state = minion.record(task, journal, outcome, meter)
        self._notify(task.id, state)
        self._recorded(index, state, began, time.monotonic() - began)

    def _keep(self, end: End) -> bool:
        """Keep an end for the next commit. Return False if there is no room for it."""
        if not self.cell.keep(end.text):
            self._commit()
            if not self.cell.keep(end.text):
                return False
        self.cell.end(end.index)
        if not self._ends:
            self._group_due = time.monotonic() + GROUP_SECONDS
        self._ends.append(end)
        return True

    def _commit(self) -> None:
        """Commit the ends together. Those that cannot be committed so are tried alone."""
        if not self._ends:
            return
        recorded = self._commit_group()
        finished = [end.task.id for end in self._ends if end.task.id in recorded]
        if finished:
            publish_finished(*finished)
        for end in self._ends:
            if end.task.id in recorded:
                self._recorded(end.index, State.SUCCEEDED, end.began, end.seconds)
            else:
                self._finish_alone(end)
        self._ends.clear()
        self.cell.saved()

    def _commit_group(self) -> set[UUID]:
        now = time.monotonic()
        # The texts are objects: this adds a member to each.
        ends = [f'{end.text[:-1]},"seconds_ago":{now - end.began:.6f}}}' for end in self._ends]
        try:
            return persistently(lifecycle.finish_pack, f"[{','.join(ends)}]")
        except SoftTimeLimitExceeded:
            raise
        except (SQLAlchemyError, MinionError) as error:
            log.warning("not_committed_together", reason=reason(error), tasks=len(ends))
            return set()

    def _finish_alone(self, end: End) -> None:
        task = end.task
        try:
            state = persistently(lifecycle.finish, task.id, task.claim, State.SUCCEEDED, end.result)
            if state is None and persistently(_has_succeeded, task):
                # Only the answer to the commit was lost, or the main process has committed it.
                state = State.SUCCEEDED
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:
            self._fail(end.index, error)
        else:
            self._notify(task.id, state)
            self._recorded(end.index, state, end.began, end.seconds)

    def _notify(self, task: UUID, state: State | None) -> None:
        if state is not None:
            (publish_finished if state.final else publish_progress)(task)

    def _recorded(self, index: int, state: State | None, began: float, seconds: float) -> None:
        if state is None:
            log.warning("claim_lost", why="another claim holds the task, or it has ended; nothing is written")
        else:
            log.info("recorded", state=str(state), task=str(self.entries[index].task_id))
        self._report(index, "claim_lost" if state is None else str(state), began, seconds)

    def _fail(self, index: int, error: Exception) -> None:
        # A limit may have struck inside the driver.
        close_engine()
        log.warning("failed_outside_task", reason=reason(error), kind=type(error).__name__)
        why = f"The minion failed outside the task: {error!r}"[:500]
        self._reports.append(Report(index, failure=why, at_limit=isinstance(error, SoftTimeLimitExceeded)))

    def _report(self, index: int, became: str, began: float | None = None, seconds: float | None = None) -> None:
        entry = self.entries[index]
        event = event_of_claim(entry.task_id, entry.claim + 1, became)
        self.cell.end(index)
        at = None if began is None else time.time() - (time.monotonic() - began)
        self._reports.append(Report(index, (event.type, event.fields) if event else None, at, seconds))


def _has_succeeded(connection: Connection, task: ClaimedTask) -> bool:
    execution = find_execution(connection, task.id, task.claim)
    return execution is not None and execution.outcome == "succeeded"
