"""Celery task events, created from the `executions` table: the view of Flower and other monitors.

To a monitor, a Celery task that returns is a success, whatever it returned. These events say how the execution ended.
The process that ends an execution in PostgreSQL sends its event: the minion itself, its main process for a child that
died, the orchestrator for a lost worker and for an expired task.

A message is one claim, and its Celery id is `TASK.CLAIM`. A message that led to no execution is rejected.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from celery import Celery
from sqlalchemy import Connection, Row, text

EXECUTION = """
    SELECT e.task_id, e.claim, e.outcome, e.error, e.worker_id, w.name AS worker, t.agent_name AS agent,
           extract(epoch FROM e.finished_at - e.started_at)::double precision AS seconds
        FROM executions e JOIN tasks t ON t.id = e.task_id JOIN workers w ON w.id = e.worker_id
        WHERE e.task_id = :task AND
"""
OF_CLAIM = text(EXECUTION + "e.claim = :claim")
# `now()` is the start of the transaction, and no other one ends an execution of this task at that microsecond.
ENDED_BY_THIS_TRANSACTION = text(EXECUTION + "e.finished_at = now()")

FOR_NOW = ("retried", "handed_back")
"""Outcomes after which the task runs again."""
LONGEST_MESSAGE = 200
QUOTES = (("'", "'"), ('"', '"'), ("`", "`"), ("“", "”"), ("‘", "’"))
# Parts of errors that may quote data: quoted or bracketed text (also if cut off at the end), URLs, long numbers.
DATA = re.compile(
    "|".join(rf"(?<!\w){begin}(?:\\.|[^{end}\\])*(?:{end}|$)" for begin, end in QUOTES)
    + r"|\{.*(?:\}|$)|\[.*(?:\]|$)|\S+@\S+\.\S+|\d[\d-]{5,}",
    re.DOTALL,
)
# After a colon an error repeats foreign text. Only the class of an exception is kept.
OWN_WORDS = re.compile(
    r".*?(?=[:;](?! \w{1,60}(?:Error|Exception|Exit|Timeout|Warning)\b)\s|[.?!]\s|[\r\n]|$)", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class MonitorEvent:
    """One event.

    Attributes:
        type: Celery's name for it, such as `task-failed`.
        fields: its JSON fields, except for the task's Celery id.
        worker: the name of the execution's worker, if another process may send the event.
    """

    type: str
    fields: dict[str, Any] = field(default_factory=dict)
    worker: str | None = None


def find_execution(connection: Connection, task: UUID, claim: int) -> Row[Any] | None:
    """Return the execution of this claim, if there is one."""
    return connection.execute(OF_CLAIM, {"task": task, "claim": claim}).one_or_none()


def event_just_ended(connection: Connection, task: UUID) -> MonitorEvent | None:
    """Return the event for the execution of this task that the current transaction has ended, if any."""
    execution = connection.execute(ENDED_BY_THIS_TRANSACTION, {"task": task}).one_or_none()
    return event_of(execution) if execution else None


def event_of(execution: Row[Any]) -> MonitorEvent:
    """Return the event for an execution that has ended, to be sent by any process."""
    event = ended(execution.outcome, execution.error)
    fields = {
        "uuid": f"{execution.task_id}.{execution.claim}",
        "name": execution.agent,
        "runtime": execution.seconds,
        **event.fields,
    }
    return MonitorEvent(event.type, fields, execution.worker)


def ended(outcome: str, error: dict[str, Any] | None) -> MonitorEvent:
    """Return the event for an execution's outcome and error."""
    match outcome:
        case "succeeded":
            return MonitorEvent("task-succeeded", {"result": "succeeded"})
        case "suspended":
            return MonitorEvent("task-succeeded", {"result": "waiting"})
        case "cancelled" | "expired":
            fields = {"terminated": True, "signum": None, "expired": outcome == "expired"}
            return MonitorEvent("task-revoked", fields)
        case _ if outcome in FOR_NOW:
            return MonitorEvent("task-retried", {"exception": summarise(error) or outcome})
    return MonitorEvent("task-failed", {"exception": summarise(error) or outcome})


def rejected(*, executed: bool, outcome: str | None = None) -> MonitorEvent:
    """Return the event for a message that led to no execution.

    Args:
        executed: another message had led to one under the same id; its state must stay in the monitors.
        outcome: how that execution ended, if it has ended and this is known.
    """
    # To `celery.events.state`, rejected comes before started, and started comes after a retry. If nothing runs, or if
    # the execution ended for now, the event must name the state: the message's own start has replaced it.
    state = ("RETRY" if outcome in FOR_NOW else None) if executed else "REJECTED"
    return MonitorEvent("task-rejected", {"requeue": False} | ({"state": state} if state else {}))


def summarise(error: dict[str, Any] | None) -> str | None:
    """Return an error's type and the beginning of its message, without the data that it may quote."""
    if not error:
        return None
    masked = DATA.sub("…", str(error.get("message") or "")[: LONGEST_MESSAGE * 10])
    words = "".join(char if char.isprintable() else " " for char in OWN_WORDS.match(masked)[0])  # type: ignore[index]
    return ": ".join(part for part in (str(error.get("type") or "error"), words[:LONGEST_MESSAGE].rstrip(" .")) if part)


def send(app: Celery, events: Iterable[MonitorEvent]) -> None:
    """Send events over a separate connection.

    Raises:
        kombu.exceptions.OperationalError: the broker is away.
    """
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, timeout=5)
        for event in events:
            with app.events.Dispatcher(connection, event.worker, buffer_while_offline=False) as dispatcher:
                dispatcher.send(event.type, **event.fields)
