"""The batch lane: one Python name for each function in `batches.sql`, and what its two sides read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypedDict
from uuid import UUID

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from shared.tasks.lifecycle import result_with_order, steps_with_order
from shared.tasks.records import ExecutionResult, Flags, Reserve, StepRecord
from shared.tasks.states import State

PLAIN = JSONB(none_as_null=True)
BEGIN = text("SELECT minion_begin_batched(:task, :claim, :steps, :reserve, :call)").bindparams(
    bindparam("steps", type_=PLAIN), bindparam("reserve", type_=PLAIN), bindparam("call", type_=PLAIN)
)
AWAIT = text("SELECT minion_await_batch(:task, :claim, :result)").bindparams(bindparam("result", type_=JSONB))
ANSWER_TO = text("SELECT result FROM batch_calls WHERE task_id = :task AND step = :step")
GATHER = text("SELECT minion_gather_calls(:most, :largest, :age)")
CALLS = text(
    "SELECT custom_id, attempt, model, body FROM batch_calls WHERE batch = :batch AND result IS NULL ORDER BY custom_id"
)
CREATED = text("SELECT minion_batch_created(:batch, :id)")
REFUSED = text("SELECT minion_batch_refused(:batch, :why, :delay, :most)")
ANSWER = text("SELECT minion_answer_call(:batch, :name, :answer, :used, :usage)").bindparams(
    bindparam("used", type_=PLAIN), bindparam("usage", type_=PLAIN)
)
RETURN = text("SELECT minion_return_call(:batch, :name, :why, :delay)")
TIDY = text("SELECT minion_tidy_calls(:most)")
OPEN = text(
    "SELECT id, model, batch_id, calls, created_at, due_at, due_at <= now() AS is_due, "
    "extract(epoch FROM clock_timestamp() - created_at)::float AS age FROM message_batches "
    "WHERE ended_at IS NULL ORDER BY created_at"
)
UNSENT = text("SELECT EXISTS (SELECT 1 FROM batch_calls WHERE batch IS NULL AND result IS NULL)")
KNOWN = text("SELECT batch_id FROM message_batches WHERE batch_id = ANY (:ids)")
LATER = text("UPDATE message_batches SET due_at = now() + :delay, error = :why WHERE id = :batch")
END = text(
    "UPDATE message_batches m SET ended_at = now(), error = NULL WHERE id = :batch "
    "AND NOT EXISTS (SELECT 1 FROM batch_calls b WHERE b.batch = m.id AND b.result IS NULL) RETURNING 1"
)
HOLD_BACK = text(
    "UPDATE batch_calls SET error = :why WHERE batch IS NULL AND result IS NULL AND error IS DISTINCT FROM :why"
)
HOLD_BATCHES = text("UPDATE message_batches SET error = :why WHERE ended_at IS NULL AND error IS DISTINCT FROM :why")
PLACE = text(
    "SELECT b.step, b.model, b.attempt, b.error, b.created_at, b.due_at, b.result IS NOT NULL AS answered, "
    "m.id AS batch, m.batch_id, m.calls, m.created_at AS tried_at, m.submitted_at, m.due_at AS asked_at, "
    "m.error AS trouble FROM batch_calls b LEFT JOIN message_batches m ON m.id = b.batch "
    "WHERE b.task_id = :task AND b.result IS NULL"
)


class BatchCall(TypedDict):
    """The call of a step that begins: the body of its request as JSON text."""

    step: int
    model: str
    body: str


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A batch that has calls without an answer.

    Attributes:
        batch_id: the API's id; None: the answer to its creation has not arrived.
        age: seconds since the request to create it was committed.
    """

    id: UUID
    model: str
    batch_id: str | None
    calls: int
    created_at: datetime
    due_at: datetime
    is_due: bool
    age: float


@dataclass(frozen=True, slots=True)
class SentCall:
    """A call of a batch."""

    custom_id: str
    attempt: int
    model: str
    body: str


# ------------------------------------------------------------------------------------------------- the minion's side


def begin(
    connection: Connection, task: UUID, claim: int, steps: list[StepRecord], call: BatchCall, reserve: Reserve | None
) -> Flags | None:
    """Commit journal steps under the fence, the last of which begins, with its call. See `budgets.spend`."""
    values = {"task": task, "claim": claim, "steps": steps_with_order(steps), "reserve": reserve, "call": call}
    flags: Flags | None = connection.scalar(BEGIN, values)
    return flags


def answer_to(connection: Connection, task: UUID, step: int) -> tuple[str | None] | None:
    """Return the answer to a step's call, which is None until it arrives. None: the step has no call in the lane."""
    row = connection.execute(ANSWER_TO, {"task": task, "step": step}).one_or_none()
    return None if row is None else (row.result,)


def wait(connection: Connection, task: UUID, claim: int, result: ExecutionResult) -> State | None:
    """Suspend a task until its call has an answer. Return its state (pending: it has one); None: the claim is lost."""
    state = connection.scalar(AWAIT, {"task": task, "claim": claim, "result": result_with_order(result)})
    return State(state) if state else None


# -------------------------------------------------------------------------------------------- the orchestrator's side


def open_batches(connection: Connection) -> list[OpenBatch]:
    """Return the batches that are not over, the oldest first."""
    return [OpenBatch(**row) for row in connection.execute(OPEN).mappings()]


def has_unsent(connection: Connection) -> bool:
    """Return whether a call is in no batch."""
    return bool(connection.scalar(UNSENT))


def gather(connection: Connection, *, most: int, largest: int, age: float) -> UUID | None:
    """Put calls of a model into a new batch, which must be committed before it is created. None: no call is due.

    Args:
        most: calls in a batch.
        largest: bytes of their bodies.
        age: seconds that the oldest call waits for others.
    """
    values = {"most": most, "largest": largest, "age": timedelta(seconds=age)}
    found: UUID | None = connection.scalar(GATHER, values)
    return found


def calls_of(connection: Connection, batch: UUID) -> list[SentCall]:
    """Return the calls of a batch that have no answer yet."""
    return [SentCall(**row) for row in connection.execute(CALLS, {"batch": batch}).mappings()]


def created(connection: Connection, batch: UUID, batch_id: str) -> bool:
    """Record the API's id of a batch. Return False if its calls were given back in the meantime."""
    return bool(connection.scalar(CREATED, {"batch": batch, "id": batch_id}))


def refused(connection: Connection, batch: UUID, why: str, *, delay: float, most: int | None = None) -> int:
    """Give back the calls of a batch that the API does not have.

    Args:
        delay: seconds until they may be sent again.
        most: the most of them in a batch from now on; None: as before.

    Returns:
        the number of calls; 0: the batch has an id by now, or is gone.
    """
    values = {"batch": batch, "why": why, "delay": timedelta(seconds=delay), "most": most}
    return int(connection.scalar(REFUSED, values) or 0)


def answer(
    connection: Connection, batch: UUID, custom_id: str, text: str, used: dict[str, Any], usage: dict[str, Any] | None
) -> bool:
    """Record the answer to a call, and wake its task. Return False if it had one, or is no call of this batch.

    Args:
        text: JSON.
        used: `tokens` and `microdollars` to settle the budgets with; None where it is unknown.
        usage: what the journal says, if the task has ended.
    """
    values = {"batch": batch, "name": custom_id, "answer": text, "used": used, "usage": usage}
    return bool(connection.scalar(ANSWER, values))


def give_back(connection: Connection, batch: UUID, custom_id: str, why: str, *, delay: float) -> bool:
    """Send a call again that its batch has not answered. Return False if it is no open call of this batch."""
    values = {"batch": batch, "name": custom_id, "why": why, "delay": timedelta(seconds=delay)}
    return bool(connection.scalar(RETURN, values))


def postpone(connection: Connection, batch: UUID, *, delay: float, why: str | None = None) -> None:
    """Ask the API about a batch again in `delay` seconds."""
    connection.execute(LATER, {"batch": batch, "delay": timedelta(seconds=delay), "why": why})


def end(connection: Connection, batch: UUID) -> bool:
    """End a batch all of whose calls have answers or were given back. Return False if one has not."""
    return connection.scalar(END, {"batch": batch}) is not None


def hold_back(connection: Connection, why: str) -> None:
    """Record why calls cannot be sent, and batches not be asked for."""
    connection.execute(HOLD_BACK, {"why": why})
    connection.execute(HOLD_BATCHES, {"why": why})


def known(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Return those ids of the API that belong to our batches."""
    return set(connection.scalars(KNOWN, {"ids": list(ids)}))


def tidy(connection: Connection, *, limit: int = 1000) -> int:
    """Delete calls that nothing waits for any more; record the cost of answers to ended tasks. Return their number."""
    return int(connection.scalar(TIDY, {"most": limit}) or 0)


def place_of(connection: Connection, task: UUID) -> dict[str, Any] | None:
    """Return where the open call of a task is: for `explain`."""
    row = connection.execute(PLACE, {"task": task}).mappings().first()
    return None if row is None else dict(row)
