"""The decisions that a task waits for, each with what a person needs to make it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from shared.contracts.key_order import in_order, ordered
from shared.tasks import remote_calls
from shared.tasks.approvals import arguments_schema, awaited, result_schema

UNDECIDED = text(
    "SELECT u.number AS step, u.kind, u.name, u.input, u.input_order, u.error, u.due_at, u.approvals, "
    "minion_proposal(u) AS proposal FROM minion_undecided(:task) u ORDER BY u.number"
)


def undecided(connection: Connection, task: UUID) -> list[dict[str, Any]]:
    """Return the decisions that a task waits for, by step.

    Each has `kind` (`approval` of a call, or `answer` about one that was interrupted), `step`, `proposal` and `name`,
    which the decision names; `value`: the proposed arguments, or the request that was interrupted; `schema` of the
    arguments or of the result, if there is one; `approvals` and `people`, if a policy applies; and `due_at`. A question
    of an MCP server is an `approval` with `server` and `question`: its arguments are the answer.
    """
    rows = connection.execute(UNDECIDED, {"task": task}).mappings().all()
    return [_decision(connection, task, in_order(row, "input")) for row in rows]


def _decision(connection: Connection, task: UUID, step: dict[str, Any]) -> dict[str, Any]:
    found = {name: step[name] for name in ("step", "proposal", "name", "due_at")}
    policy = awaited(connection, task, step["step"])
    counts = {} if policy is None else {"approvals": len(policy.given), "people": policy.people}
    return {**found, **counts, **_matter(connection, task, step)}


def _matter(connection: Connection, task: UUID, step: dict[str, Any]) -> dict[str, Any]:
    """Return the value that a person decides about, its schema, and the kind of the decision."""
    number = step["step"]
    asked = remote_calls.form_of(connection, task, number)
    if asked is not None:
        question = {"server": asked.server, "question": asked.message}
        return {"kind": "approval", **question, "value": asked.proposed, "schema": asked.schema}
    if step["kind"] == "wait":
        return {"kind": "approval", "value": _arguments(step), "schema": arguments_schema(connection, task, number)}
    return {"kind": "answer", "value": step["input"], "schema": result_schema(connection, task, number)}


def _arguments(step: dict[str, Any]) -> Any:
    approvals = step["approvals"] or {}
    if approvals.get("edited"):
        return ordered(approvals["arguments"], approvals.get("order"))
    return step["input"]["approval"]
