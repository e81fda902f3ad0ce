"""The form of a decision: a field for each argument or part of a result if their schema is simple, else their JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine

from orchestrator.pages.forms import as_json
from orchestrator.pages.schema_form import Field, fields_of, values_of
from shared.access.actors import Key
from shared.access.roles import Permission
from shared.contracts.strict_json import JsonValue, parse
from shared.tasks.approvals import arguments_schema, result_schema

LONGEST_VALUE = 20_000
"""Characters of arguments that a form shows; longer ones are edited from the command line."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision that a reader may make, and the form for it.

    Attributes:
        kind: `approval` or `answer`.
        address: the step and the proposal that the reader sees, which the decision names.
        fields: of the arguments, or of the result, if their schema is simple; else empty, and `text` has their JSON.
        editable: the reader sees the arguments, and they are not too large.
        question: of an MCP server, which the arguments answer; None: they are those of a call.
    """

    kind: str
    address: dict[str, Any]
    proposed: Any
    fields: list[Field]
    text: str
    editable: bool
    typed: Mapping[str, str]
    question: str | None = None


def decision_of(
    database: Engine, task: UUID, why: Mapping[str, Any], key: Key, typed: Mapping[str, str] | None = None
) -> Decision | None:
    """Return the decision that a task waits for; None if it waits for none.

    Args:
        typed: the fields of a form that comes back with a mistake.
    """
    facts = why["facts"]
    if why["reason"] not in ("approval", "answer") or "proposal" not in facts:
        return None
    typed = typed or {}
    address = {"step": facts["step"], "proposal": facts["proposal"]}
    if why["reason"] == "answer":
        schema = None
        if key.may(Permission.PAYLOADS_READ):
            with database.connect() as connection:
                schema = result_schema(connection, task, facts["step"])
        fields = fields_of(schema, {}, typed)
        return Decision("answer", address, facts["request"], fields, typed.get("result", ""), False, typed)
    proposed = facts["proposed"]
    text = json.dumps(proposed, ensure_ascii=False, indent=2)
    editable = key.may(Permission.PAYLOADS_READ) and len(text) <= LONGEST_VALUE
    schema = None
    if editable:
        with database.connect() as connection:
            schema = arguments_schema(connection, task, facts["step"])
    fields = fields_of(schema, proposed, typed) if editable else []
    text = typed.get("arguments", text)
    return Decision("approval", address, proposed, fields, text, editable, typed, facts.get("question"))


def decided_value(connection: Connection, task: UUID, form: Mapping[str, str]) -> JsonValue:
    """Return the arguments, or the result, that a form has.

    Raises:
        InvalidInput: they are not JSON, or a field does not have the type that the schema wants.
    """
    if "arguments" in form:
        return parse(form["arguments"])
    if "result" in form:
        return as_json(form["result"], "The result")
    find = result_schema if form.get("verdict") == "result" else arguments_schema
    step = form.get("step", "")
    schema = find(connection, task, int(step)) if step.isdecimal() and len(step) < 10 else None
    return values_of(schema, form)
