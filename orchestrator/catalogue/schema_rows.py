"""A JSON Schema as rows of a table: one for each field, with its type, its limits and its description."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

MOST_ROWS = 200
DEEPEST = 6
LIMITS = {
    "format": "format",
    "pattern": "pattern",
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
    "multipleOf": "multiple of",
    "minLength": "characters, at least",
    "maxLength": "characters, at most",
    "minItems": "elements, at least",
    "maxItems": "elements, at most",
    "uniqueItems": "distinct",
    "minProperties": "fields, at least",
    "maxProperties": "fields, at most",
    "default": "default",
}
CHOICES = {"anyOf": "any of", "oneOf": "one of", "allOf": "all of"}


@dataclass(frozen=True, slots=True)
class Row:
    """A field.

    Attributes:
        path: its place, such as `order.items[].amount`; empty for the whole value.
    """

    path: str
    type: str
    required: bool
    limits: str
    description: str


def rows_of(schema: Any) -> list[Row]:
    """Return a row for each field of a schema, at most 200. The whole value has one if it is not a plain object."""
    return list(islice(_rows(schema, "", False, 0), MOST_ROWS))


def _rows(schema: Any, path: str, required: bool, depth: int) -> Iterator[Row]:
    facts = schema if isinstance(schema, Mapping) else {}
    fields, elements = facts.get("properties"), facts.get("items")
    if (path and not path.endswith("[]")) or not isinstance(fields, Mapping):
        yield Row(path, _type(schema), required, _limits(facts), str(facts.get("description", "")))
    if depth >= DEEPEST:
        return
    if isinstance(fields, Mapping):
        names = facts.get("required")
        for name, field in fields.items():
            inner = isinstance(names, list) and name in names
            yield from _rows(field, f"{path}.{name}" if path else str(name), inner, depth + 1)
    if isinstance(elements, Mapping) and "properties" in elements:
        yield from _rows(elements, f"{path}[]", False, depth + 1)


def _type(schema: Any) -> str:
    if not isinstance(schema, Mapping):
        return "any" if schema is not False else "nothing"
    if "enum" in schema or "const" in schema:
        values = schema["enum"] if isinstance(schema.get("enum"), list) else [schema.get("const")]
        return " or ".join(map(_text, values))
    if "$ref" in schema:
        return str(schema["$ref"])
    kind = schema.get("type")
    if kind == "array" and isinstance(schema.get("items"), Mapping):
        return f"array of {_type(schema['items'])}"
    if kind is not None:
        return " or ".join(map(str, kind)) if isinstance(kind, list) else str(kind)
    for keyword, words in CHOICES.items():
        if isinstance(schema.get(keyword), list):
            return f"{words}: {', '.join(map(_type, schema[keyword]))}"
    return "object" if "properties" in schema else "any"


def _limits(schema: Mapping[str, Any]) -> str:
    return "; ".join(f"{words} {_text(schema[name])}" for name, words in LIMITS.items() if name in schema)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
