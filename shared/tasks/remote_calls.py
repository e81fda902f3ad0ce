"""Calls that an MCP server finishes later: one Python name for each function in `remote_calls.sql`, and what its two
sides read.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, NotRequired, TypedDict
from uuid import UUID

from sqlalchemy import Connection, Row, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TEXT

from shared.contracts.json_schema import validate
from shared.contracts.strict_json import JsonValue
from shared.errors import InvalidInput
from shared.tasks.lifecycle import steps_with_order
from shared.tasks.records import StepRecord

PLAIN = JSONB(none_as_null=True)
BEGIN = text("SELECT minion_begin_remote(:task, :claim, :steps, :call)").bindparams(
    bindparam("steps", type_=PLAIN), bindparam("call", type_=PLAIN)
)
RESUME = text("SELECT minion_resume_remote(:task, :claim, :step)")
FORGET = text("SELECT minion_forget_remote(:task, :claim, :step)")
COLUMNS = (
    "task_id, step, namespace, server, server_version_id, remote_id, state, message, requests, request_state, answer, "
    "answered, round, result, poll_seconds, expires_at <= now() AS is_expired, "
    "extract(epoch FROM clock_timestamp() - r.created_at)::float AS age, failures, "
    "extract(epoch FROM clock_timestamp() - failing_since)::float AS seconds_failing"
)
OF = text(
    f"SELECT {COLUMNS}, (SELECT s.usage FROM steps s WHERE s.task_id = r.task_id AND s.number = r.step) AS usage "  # noqa: S608
    "FROM remote_calls r WHERE task_id = :task AND step = :step"
)
CLAIM = text(
    f"SELECT {COLUMNS}, NULL AS usage FROM minion_claim_remote(:most, :each, :busy, :hold) r"  # noqa: S608
).bindparams(bindparam("busy", type_=PLAIN))
POLLED = text("SELECT minion_remote_polled(:task, :step, :remote, :news)").bindparams(bindparam("news", type_=PLAIN))
TAKEN = text("SELECT minion_remote_taken(:task, :step, :remote, :keys, :delay)").bindparams(
    bindparam("keys", type_=ARRAY(TEXT))
)
DROP = text("DELETE FROM remote_calls WHERE task_id = :task AND step = :step AND state = 'cancelling'")
POSTPONE = text("UPDATE remote_calls SET due_at = now() + :delay, error = :why WHERE task_id = :task AND step = :step")
CANCEL_LATER = text(
    "UPDATE remote_calls SET failures = failures + 1, error = :why, due_at = now() + :delay "
    "WHERE task_id = :task AND step = :step AND state = 'cancelling'"
)
FORM = text(
    """
    SELECT r.form, COALESCE(s.approvals->'arguments', r.proposed) AS proposed, r.server
        FROM remote_calls r JOIN steps s ON s.task_id = r.task_id AND s.number = r.step
        WHERE r.task_id = :task AND r.step = :step AND r.state = 'input_required' AND minion_asks(s)
    """
)
PLACES = text(
    "SELECT s.number, s.name, s.program, s.line, r.server, r.remote_id, r.state, r.message, r.changed_at, r.due_at, "
    "r.expires_at, r.failing_since, r.error, r.answer IS NOT NULL AS is_answered "
    "FROM remote_calls r JOIN steps s ON s.task_id = r.task_id AND s.number = r.step "
    "WHERE r.task_id = :task AND r.state IN ('working', 'input_required') ORDER BY r.step LIMIT 20"
)


class NewRemoteCall(TypedDict):
    """A call that its server finishes later, as `minion_begin_remote` reads it. Times are seconds.

    Attributes:
        namespace: of the server's definition, whose secrets it uses.
        state: `working` or `input_required`.
        remote_id: the server's id of its task; None: a plain call, which is repeated with a person's answers.
        message: what the server says about it, for people.
        requests, form, request_state: JSON texts.
        round: how often the server has asked.
        ttl_seconds: None: the server keeps its task.
    """

    step: int
    namespace: str
    server: str
    server_version_id: str
    remote_id: str | None
    state: str
    message: str | None
    requests: str | None
    form: str | None
    proposed: Any
    request_state: str | None
    round: int
    poll_seconds: float
    ttl_seconds: float | None


class News(TypedDict, total=False):
    """The findings of a poll, as `minion_remote_polled` reads them. Times are seconds.

    Attributes:
        result: JSON text of the end; the call is over.
        requests, form, proposed, asks: questions that a person has not seen yet, and the hash that identifies them.
        error: why the server could not be asked.
        ttl_seconds: since the call began.
    """

    state: str
    message: str | None
    poll_seconds: float
    ttl_seconds: float | None
    requests: str
    form: str
    proposed: Any
    asks: str
    result: str
    error: str


class Answer(TypedDict):
    """A person's answer to the questions of a server. `value` is None if they were declined."""

    verdict: str
    value: Any
    decision: NotRequired[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Form:
    """Questions of a server, for the person who answers them.

    Attributes:
        proposed: the answer of the people who have approved so far, or default values, which need not match the schema.
        message: the server's words.
        schema: of the answer.
    """

    server: str
    proposed: JsonValue
    message: str
    schema: dict[str, Any]

    def check(self, answer: JsonValue) -> None:
        """Check an answer.

        Raises:
            InvalidInput: it does not match the schema; with every violation and its path.
        """
        validate(self.schema, answer, what=f"The answer for the MCP server {self.server!r}", error=InvalidInput)


@dataclass(frozen=True, slots=True)
class RemoteCall:
    """A call that its server finishes later: see `shared.database.tables.remote_calls`.

    Attributes:
        is_expired: the time for which the server keeps its task is over.
        age: seconds since the server created it.
        usage: of its step, for a minion.
    """

    task_id: UUID
    step: int
    namespace: str
    server: str
    server_version_id: UUID
    remote_id: str | None
    state: str
    message: str | None
    requests: str | None
    request_state: str | None
    answer: Answer | None
    answered: list[str]
    round: int
    result: str | None
    poll_seconds: float
    is_expired: bool | None
    age: float
    failures: int
    seconds_failing: float | None
    usage: dict[str, Any] | None

    @property
    def is_open(self) -> bool:
        """Whether its task has to wait for it."""
        return self.state in ("working", "input_required")


# ------------------------------------------------------------------------------------------------- the minion's side


def begin(connection: Connection, task: UUID, claim: int, steps: list[StepRecord], call: NewRemoteCall) -> bool:
    """Commit journal steps under the fence, and the call of one of them. Return False if the claim is lost."""
    values = {"task": task, "claim": claim, "steps": steps_with_order(steps), "call": call}
    return bool(connection.scalar(BEGIN, values))


def of_step(connection: Connection, task: UUID, step: int) -> RemoteCall | None:
    """Return the call of a step; None: the server does not finish it later."""
    row = connection.execute(OF, {"task": task, "step": step}).one_or_none()
    return None if row is None else _call(row)


def resume(connection: Connection, task: UUID, claim: int, step: int) -> bool:
    """Record that a plain call is about to be repeated with answers. Return False if the claim is lost."""
    return bool(connection.scalar(RESUME, {"task": task, "claim": claim, "step": step}))


def forget(connection: Connection, task: UUID, claim: int, step: int) -> None:
    """Forget the call of a step that is about to begin again."""
    connection.execute(FORGET, {"task": task, "claim": claim, "step": step})


# -------------------------------------------------------------------------------------------- the orchestrator's side


def claim(connection: Connection, *, most: int, each: int, busy: Mapping[str, int], hold: float) -> list[RemoteCall]:
    """Claim polls and cancellations that are due.

    Args:
        each: the most that one server gets at a time.
        busy: the number of those that the caller still has open, by `namespace/server`.
        hold: seconds after which another orchestrator makes them.
    """
    values = {"most": most, "each": each, "busy": dict(busy), "hold": timedelta(seconds=hold)}
    return [_call(row) for row in connection.execute(CLAIM, values)]


def polled(connection: Connection, call: RemoteCall, news: News) -> bool:
    """Record what a poll has brought. Return False if the call is no longer open."""
    content = {**news, "answered": len(call.answered)}
    values = {"task": call.task_id, "step": call.step, "remote": call.remote_id, "news": content}
    return bool(connection.scalar(POLLED, values))


def taken(connection: Connection, call: RemoteCall, keys: Collection[str], *, delay: float) -> None:
    """Record that the server has the answers to these questions; poll it `delay` seconds later."""
    values = {"task": call.task_id, "step": call.step, "remote": call.remote_id, "keys": list(keys)}
    connection.execute(TAKEN, {**values, "delay": timedelta(seconds=delay)})


def postpone(connection: Connection, call: RemoteCall, why: str, *, delay: float) -> None:
    """Look at a call again in `delay` seconds."""
    values = {"task": call.task_id, "step": call.step, "why": why, "delay": timedelta(seconds=delay)}
    connection.execute(POSTPONE, values)


def cancelled(connection: Connection, call: RemoteCall) -> None:
    """Forget a call whose cancellation its server has received, or will not receive."""
    connection.execute(DROP, {"task": call.task_id, "step": call.step})


def cancel_later(connection: Connection, call: RemoteCall, why: str, *, delay: float) -> None:
    """Try a cancellation again in `delay` seconds."""
    values = {"task": call.task_id, "step": call.step, "why": why, "delay": timedelta(seconds=delay)}
    connection.execute(CANCEL_LATER, values)


# ---------------------------------------------------------------------------------------------------- for a person


def form_of(connection: Connection, task: UUID, step: int) -> Form | None:
    """Return the questions that a step waits with; None: it has none."""
    row = connection.execute(FORM, {"task": task, "step": step}).one_or_none()
    return None if row is None else Form(row.server, row.proposed, **json.loads(row.form))


def places_of(connection: Connection, task: UUID) -> list[dict[str, Any]]:
    """Return the open calls of a task: for `explain`."""
    return [dict(row) for row in connection.execute(PLACES, {"task": task}).mappings()]


def _call(row: Row[Any]) -> RemoteCall:
    return RemoteCall(**{each.name: getattr(row, each.name) for each in fields(RemoteCall)})
