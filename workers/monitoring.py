"""Events for Celery's monitors. Celery itself would report every claim as a success.

The child looks up how its execution ended, and its return value carries the event to the main process, which sends it
in place of Celery's. For a child that died, the main process looks it up after writing the record.
"""

from __future__ import annotations

import json
from collections import deque
from typing import Any
from uuid import UUID

import structlog
from celery.exceptions import SoftTimeLimitExceeded
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from shared.database.connections import close_engine, reason, statement
from shared.monitor_events import MonitorEvent, ended, event_just_ended, event_of, find_execution, rejected, send
from shared.tasks.states import State

log = structlog.get_logger(__name__)

LONGEST_REPORT = 4096
"""Characters of a return value that reach the main process. The longest report is less than half of it."""
OUTCOMES: dict[str, str] = {State.PENDING: "handed_back", State.WAITING: "suspended"}
"""Outcomes of executions, as far as their tasks' states show them."""


# ----------------------------------------------------------------------------------------- in the child


def report(task: UUID, claim: int, became: str) -> str:
    """Return the event for the claim of a message as JSON, `null` for none.

    Args:
        claim: the claim number that the message was sent under.
        became: what `workers.minion.run` returned.
    """
    event = event_of_claim(task, claim + 1, became)
    # Celery writes a text between single quotes.
    return json.dumps(event and [event.type, event.fields]).replace("'", "\\u0027")


def event_of_claim(task: UUID, claim: int, became: str) -> MonitorEvent | None:
    """Return the event for the end of a claim; None if another process sends it. `became` is as for `report`."""
    if became == State.SUCCEEDED:
        return ended("succeeded", None)
    if became == "claim_lost":
        # The orchestrator ended this execution and has sent the event.
        return None
    try:
        with statement() as connection:
            execution = find_execution(connection, task, claim)
    except (SQLAlchemyError, SoftTimeLimitExceeded) as error:
        # A soft limit may have struck inside the driver.
        close_engine()
        log.warning("monitors_not_told_why", reason=reason(error))
        return rejected(executed=True) if became == "skipped" else ended(OUTCOMES.get(became, became), None)
    if execution is None:
        return rejected(executed=False)
    if became == "skipped":
        return rejected(executed=True, outcome=execution.outcome)
    return ended(execution.outcome, execution.error)


# ----------------------------------------------------------------------------------------- in the main process


def event_in(returned: str) -> MonitorEvent | None:
    """Return the event in a child's report, given as the return value that Celery passes on."""
    event = json.loads(returned[1:-1])
    return MonitorEvent(*event) if event else None


def event_of_lost_child(
    connection: Connection, task: UUID, claim: int, worker: UUID, *, released: bool
) -> MonitorEvent | None:
    """Return the event for a child that died; None if another process sends it.

    Args:
        released: this transaction released the tasks that the child held.
    """
    if released:
        return event_just_ended(connection, task)
    execution = find_execution(connection, task, claim)
    if execution is None:
        event = rejected(executed=False)
        return MonitorEvent(event.type, {"uuid": f"{task}.{claim}", **event.fields})
    # The child wrote its record and died before it could report it.
    told_by_others = execution.worker_id != worker or execution.outcome in ("running", "lost", "expired")
    return None if told_by_others else event_of(execution)


class Monitors:
    """Sends this worker's events from any thread: through the consumer while it runs, and directly after that."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self._unsent: deque[MonitorEvent] = deque()

    def report(self, event: MonitorEvent | None) -> None:
        """Send an event soon; `close` sends it if the consumer has ended by then."""
        if event is None:
            return
        self._unsent.append(event)
        hub = self.worker.consumer.hub
        if hub is None:
            self._speak()
        else:
            hub.call_soon(self._speak)

    def close(self) -> None:
        """Send what is left when the consumer has ended. Never raises."""
        try:
            if self._unsent:
                send(self.worker.app, self._unsent)
        except Exception as error:
            log.warning("monitors_not_told", events=len(self._unsent), reason=str(error)[:300])
        self._unsent.clear()

    def _speak(self) -> None:
        dispatcher = self.worker.consumer.event_dispatcher
        while dispatcher is not None and self._unsent:
            event = self._unsent.popleft()
            dispatcher.send(event.type, **event.fields)
