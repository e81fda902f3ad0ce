"""The fields of a form for a JSON Schema that is simple enough: an object of values without parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.pages.formats import Shown
from shared.contracts.strict_json import JsonValue, parse
from shared.errors import InvalidInput

SIMPLE = ("string", "integer", "number", "boolean")
PREFIX = "argument."
MOST_FIELDS = 12


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


def fields_of(schema: Any, values: Any, typed: Mapping[str, str]) -> list[Field]:
    """Return a field for each property of a schema; none if it is large, or has more than values without parts.

    Args:
        values: an object that the schema describes, to begin with.
        typed: the fields of a form that comes back with a mistake.
    """
    if not isinstance(schema, dict) or not isinstance(values, dict) or Shown(schema).is_cut:
        return []
    properties = schema.get("properties")
    if not isinstance(properties, dict) or not values.keys() <= properties.keys() or len(properties) > MOST_FIELDS:
        return []
    if any(_kind(part) is None for part in properties.values()):
        return []
    required = schema.get("required", [])
    return [
        Field(
            name,
            kind := str(_kind(part)),
            typed.get(PREFIX + name, _written(kind, values.get(name))),
            name in required,
            str(part.get("description", "")),
            [json.dumps(each, ensure_ascii=False) for each in part.get("enum", ())],
        )
        for name, part in properties.items()
    ]


def values_of(schema: Any, form: Mapping[str, str]) -> dict[str, JsonValue]:
    """Return the object that a form has.

    Raises:
        InvalidInput: a field does not have the type that the schema wants.
    """
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
