"""Schemas to which the Messages API can constrain what a model writes: outputs, and the input of strict tools.

The API takes a part of JSON Schema (https://platform.claude.com/docs/en/build-with-claude/structured-outputs). Bounds
such as `minimum` or `maxLength` are not among it, but they only narrow a value, so they are checked afterwards. Other
keywords, or too many choices, change what a constrained answer could be: such a schema cannot constrain.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

FIRST_CONSTRAINED = {"opus": (4, 5), "sonnet": (4, 5), "haiku": (4, 5)}
MODEL = re.compile(r"claude-(opus|sonnet|haiku)-(\d+)(?:[-.](\d{1,2}))?(?:[-@]\d{8})?")
MOST_OPTIONAL = 24
MOST_UNIONS = 16
TYPES = frozenset({"object", "array", "string", "integer", "number", "boolean", "null"})
STRUCTURE = frozenset({"type", "properties", "required", "additionalProperties", "items", "enum", "const"})
CHOICES = ("anyOf", "oneOf")
NOTES = frozenset({"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"})
BOUNDS = frozenset(
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern"}
    | {"format", "minItems", "maxItems", "uniqueItems"}
)
ROOT = frozenset({"$defs", "$schema", "$id"})
KNOWN = STRUCTURE | NOTES | BOUNDS | {*CHOICES, "$ref"}


def can_be_constrained(model: str) -> bool:
    """Return whether a model is known to write in the form of a schema. Unknown ones are not."""
    match = MODEL.fullmatch(model)
    return match is not None and (int(match[2]), int(match[3] or 0)) >= FIRST_CONSTRAINED[match[1]]


def unconstrainable(schema: Schema) -> str | None:
    """Return the reason why the API cannot constrain a model to this schema; None if it can."""
    if schema.get("type") != "object":
        return 'its `type` must be "object"'
    counts = {"optional": 0, "unions": 0}
    fault = next(_faults(schema, "", schema, (), counts), None)
    if fault is None and counts["optional"] > MOST_OPTIONAL:
        return f"it has {counts['optional']} optional properties, and at most {MOST_OPTIONAL} are possible"
    if fault is None and counts["unions"] > MOST_UNIONS:
        return f"it has {counts['unions']} choices by anyOf or oneOf, and at most {MOST_UNIONS} are possible"
    return fault


def _faults(schema: Any, place: str, root: Schema, within: tuple[str, ...], counts: dict[str, int]) -> Iterator[str]:
    """Yield the faults of a schema.

    Args:
        within: the references that lead to it.
    """
    where = f" at {place}" if place else ""
    if not isinstance(schema, dict):
        yield f"a schema that is `true` or `false`{where} is not possible"
        return
    for keyword in schema.keys() - KNOWN - (frozenset() if place else ROOT):
        yield f"`{keyword}`{where} is not possible"
    if "$ref" in schema:
        yield from _faults_of_reference(schema["$ref"], place, root, within, counts)
        return
    choices = [name for name in CHOICES if name in schema]
    kind = schema.get("type")
    given = choices or "enum" in schema or "const" in schema
    if isinstance(kind, list) or not (given or kind in TYPES):
        yield f"`type`{where} must be one type; where several are possible, use `anyOf`"
    if not all(_is_plain(value) for value in [*schema.get("enum", ()), schema.get("const")]):
        yield f"`enum`{where} must have only texts, numbers, true, false and null"
    for name in choices:
        counts["unions"] += 1
        for number, choice in enumerate(schema[name]):
            yield from _faults(choice, f"{place}/{name}/{number}", root, within, counts)
    if kind == "object":
        yield from _faults_of_object(schema, place, root, within, counts)
    if kind == "array":
        if "items" not in schema:
            yield f"`items`{where} is missing"
        else:
            yield from _faults(schema["items"], f"{place}/items", root, within, counts)


def _faults_of_object(
    schema: Schema, place: str, root: Schema, within: tuple[str, ...], counts: dict[str, int]
) -> Iterator[str]:
    properties = schema.get("properties") or {}
    where = f" at {place}" if place else ""
    if not properties:
        yield f"an object without `properties`{where} is not possible"
    if schema.get("additionalProperties", False) is not False:
        yield f"`additionalProperties`{where} must be false or left out"
    if unknown := [name for name in schema.get("required", ()) if name not in properties]:
        yield f"`required`{where} names {unknown[0][:100]!r}, which is not among the properties"
    counts["optional"] += len(properties.keys() - {*schema.get("required", ())})
    for name, each in properties.items():
        yield from _faults(each, f"{place}/properties/{name[:100]}", root, within, counts)


def _faults_of_reference(
    reference: Any, place: str, root: Schema, within: tuple[str, ...], counts: dict[str, int]
) -> Iterator[str]:
    target = reference.removeprefix("#/$defs/") if isinstance(reference, str) else ""
    defined = root.get("$defs", {}).get(target)
    if defined is None or not str(reference).startswith("#/$defs/"):
        yield f"`$ref` at {place or 'the top'} must name one of its `$defs`"
    elif target in within:
        yield f"it contains itself: `$ref` at {place}"
    else:
        yield from _faults(defined, f"/$defs/{target[:100]}", root, (*within, target), counts)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
