"""The form of a decision: a field for each proposed argument if their schema is simple enough, else their JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine

from shared.access.actors import Key
from shared.access.roles import Permission
from shared.contracts.strict_json import JsonValue, parse
from shared.errors import InvalidInput
from shared.tasks.approvals import arguments_schema

SIMPLE = ("string", "integer", "number", "boolean")
PREFIX = "argument."
MOST_FIELDS = 12
LONGEST_VALUE = 20_000
"""Characters of arguments that a form shows; longer ones are edited from the command line."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of the form.

    Attributes:
        kind: `string`, `integer`, `number`, `boolean` or `choice`.
        value: the text in it.
        choices: the JSON of each value that is allowed, for a choice.
    """

    name: str
    kind: str
    value: str
    required: bool
    description: str
    choices: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a reader may decide, and the form for it.

    Attributes:
        kind: `approval` or `answer`.
        address: the step and the proposal that the reader sees, which the decision names.
        fields: of the arguments, if their schema is simple; else empty, and `text` has their JSON.
        editable: the reader sees the arguments, and they are not too large.
    """

    kind: str
    address: dict[str, Any]
    proposed: Any
    fields: list[Field]
    text: str
    editable: bool
    typed: Mapping[str, str]


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
        return Decision("answer", address, facts["request"], [], typed.get("result", ""), False, typed)
    proposed = facts["proposed"]
    text = json.dumps(proposed, ensure_ascii=False, indent=2)
    editable = key.may(Permission.PAYLOADS_READ) and len(text) <= LONGEST_VALUE
    schema = None
    if editable:
        with database.connect() as connection:
            schema = arguments_schema(connection, task, facts["step"])
    fields = _fields(schema, proposed, typed) if editable else []
    return Decision("approval", address, proposed, fields, typed.get("arguments", text), editable, typed)


def decided_value(connection: Connection, task: UUID, form: Mapping[str, str]) -> JsonValue:
    """Return the arguments that a form has.

    Raises:
        InvalidInput: they are not JSON, or a field does not have the type that the schema wants.
    """
    if "arguments" in form:
        return parse(form["arguments"])
    step = form.get("step", "")
    schema = arguments_schema(connection, task, int(step)) if step.isdecimal() and len(step) < 10 else None
    properties = schema.get("properties", {}) if schema else {}
    sent = {name.removeprefix(PREFIX): text for name, text in form.items() if name.startswith(PREFIX)}
    required = schema.get("required", []) if schema else []
    return {
        name: _read(name, properties.get(name, {}), text)
        for name, text in sent.items()
        if text or (name in required and _kind(properties.get(name)) == "string")
    }


def _read(name: str, schema: Any, text: str) -> JsonValue:
    if _kind(schema) == "string":
        return text.replace("\r\n", "\n")  # browsers send lines so
    try:
        return parse(text)
    except InvalidInput:
        raise InvalidInput(f"{name}: {text[:50]!r} must be {_described(schema)}.") from None


def _described(schema: Any) -> str:
    return {"integer": "a whole number, like 30", "boolean": "true or false"}.get(_kind(schema) or "", "a number")


def _fields(schema: Any, proposed: Any, typed: Mapping[str, str]) -> list[Field]:
    """Return a field for each argument; none if the schema has more than values without parts."""
    if not isinstance(schema, dict) or not isinstance(proposed, dict):
        return []
    properties = schema.get("properties")
    if not isinstance(properties, dict) or not proposed.keys() <= properties.keys() or len(properties) > MOST_FIELDS:
        return []
    if any(_kind(part) is None for part in properties.values()):
        return []
    required = schema.get("required", [])
    return [
        Field(
            name,
            kind := str(_kind(part)),
            typed.get(PREFIX + name, _written(kind, proposed.get(name))),
            name in required,
            str(part.get("description", "")),
            [json.dumps(each, ensure_ascii=False) for each in part.get("enum", ())],
        )
        for name, part in properties.items()
    ]


def _kind(schema: Any) -> str | None:
    """Return the kind of a field; None if a value of this schema may have parts."""
    if not isinstance(schema, dict):
        return None
    if isinstance(schema.get("enum"), list):
        return "choice" if all(not isinstance(each, dict | list) for each in schema["enum"]) else None
    kind = schema.get("type")
    return kind if kind in SIMPLE else None


def _written(kind: str, value: Any) -> str:
    if value is None:
        return ""
    return value if kind == "string" and isinstance(value, str) else json.dumps(value, ensure_ascii=False)
