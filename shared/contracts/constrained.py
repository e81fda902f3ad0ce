"""Schemas to which the Messages API can constrain what a model writes: outputs, and the input of strict tools.

The API takes a part of JSON Schema (https://platform.claude.com/docs/en/build-with-claude/structured-outputs). Bounds
such as `minimum` or `maxLength` are not among it, but they only narrow a value, so they are checked afterwards. Other
keywords, or too many choices, change what a constrained answer could be: such a schema cannot constrain.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from shared.providers import claude_name

Schema = dict[str, Any]

FIRST_CONSTRAINED = {"opus": (4, 5), "sonnet": (4, 5), "haiku": (4, 5)}
MODEL = re.compile(r"claude-(opus|sonnet|haiku)-(\d+)(?:[-.](\d{1,2}))?(?:[-@]\d{8})?")
MOST_OPTIONAL = 24
MOST_UNIONS = 16
TYPES = frozenset({"object", "array", "string", "integer", "number", "boolean", "null"})
STRUCTURE = frozenset({"type", "properties", "required", "additionalProperties", "items", "enum", "const"})
ALONE = ("anyOf", "oneOf", "$ref")
"""A schema with one of these is known to the API by that alone."""
NOT_AT_THE_TOP = (*ALONE, "enum", "const")
NOTES = frozenset({"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"})
BOUNDS = frozenset(
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern"}
    | {"format", "minItems", "maxItems", "uniqueItems"}
)
ROOT = frozenset({"$defs", "$schema", "$id"})
KNOWN = STRUCTURE | NOTES | BOUNDS | {*ALONE}


def can_be_constrained(model: str) -> bool:
    """Return whether a model is known to write in the form of a schema. Unknown ones are not."""
    match = MODEL.fullmatch(claude_name(model))
    return match is not None and (int(match[2]), int(match[3] or 0)) >= FIRST_CONSTRAINED[match[1]]


def unconstrainable(schema: Schema) -> str | None:
    """Return the reason why the API cannot constrain a model to this schema; None if it can."""
    if schema.get("type") != "object":
        return 'its `type` must be "object"'
    for keyword in NOT_AT_THE_TOP:
        if keyword in schema:
            return f"`{keyword}` at its top level is not possible"
    walk = _Walk(schema.get("$defs", {}))
    try:
        fault = next(walk.faults_of_root(schema), None)
    except RecursionError:
        return "its definitions refer to each other too deeply"
    if fault is None and walk.optional > MOST_OPTIONAL:
        return f"it has {walk.optional} optional properties, and at most {MOST_OPTIONAL} are possible"
    if fault is None and walk.unions > MOST_UNIONS:
        return f"it has {walk.unions} choices by anyOf or oneOf, and at most {MOST_UNIONS} are possible"
    return fault


def requires_all(schema: Any) -> bool:
    """Return whether every object in a schema requires all of its properties."""
    if isinstance(schema, list):
        return all(map(requires_all, schema))
    if not isinstance(schema, dict):
        return True
    properties = schema.get("properties")
    if isinstance(properties, dict) and properties.keys() != {*schema.get("required", ())}:
        return False
    return all(requires_all(each) for name, each in schema.items() if name not in ("enum", "const", "default"))


@dataclass
class _Walk:
    """A walk through a schema, and once through each of its definitions, however often they are referred to.

    Attributes:
        within: the definitions that the walk is in.
        seen: the definitions that it has been in.
        optional: number of optional properties.
        unions: number of choices.
    """

    definitions: dict[str, Any]
    within: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    optional: int = 0
    unions: int = 0

    def faults_of_root(self, schema: Schema) -> Iterator[str]:
        """Yield the faults of the schema, also those of definitions that it does not use: they are sent as well."""
        for name in self.definitions:
            yield from self._faults_of_definition(name, f"/$defs/{name[:100]}")
        yield from self._faults(schema, "")

    def _faults(self, schema: Any, place: str) -> Iterator[str]:
        where = f" at {place}" if place else ""
        if not isinstance(schema, dict):
            yield f"a schema that is `true` or `false`{where} is not possible"
            return
        for keyword in schema.keys() - KNOWN - (frozenset() if place else ROOT):
            yield f"`{keyword}`{where} is not possible"
        alone = [name for name in ALONE if name in schema]
        if alone and (others := [*alone[1:], *sorted(schema.keys() & STRUCTURE)]):
            yield f"`{alone[0]}`{where} must have no `{others[0]}` beside it"
        elif not alone:
            yield from self._faults_of_type(schema, place, where)
        elif alone == ["$ref"]:
            yield from self._faults_of_reference(schema["$ref"], place)
        else:
            self.unions += 1
            for number, choice in enumerate(schema[alone[0]]):
                yield from self._faults(choice, f"{place}/{alone[0]}/{number}")

    def _faults_of_type(self, schema: Schema, place: str, where: str) -> Iterator[str]:
        kind = schema.get("type")
        if isinstance(kind, list) or not ("enum" in schema or "const" in schema or kind in TYPES):
            yield f"`type`{where} must be one type; where several are possible, use `anyOf`"
        if not schema.get("enum", True):
            yield f"`enum`{where} must have a value"
        if not all(_is_plain(value) for value in [*schema.get("enum", ()), schema.get("const")]):
            yield f"`enum`{where} must have only texts, numbers, true, false and null"
        if kind == "object":
            yield from self._faults_of_object(schema, place, where)
        if kind == "array" and "items" not in schema:
            yield f"`items`{where} is missing"
        elif kind == "array":
            yield from self._faults(schema["items"], f"{place}/items")

    def _faults_of_object(self, schema: Schema, place: str, where: str) -> Iterator[str]:
        properties = schema.get("properties") or {}
        if not properties:
            yield f"an object without `properties`{where} is not possible"
        if schema.get("additionalProperties", False) is not False:
            yield f"`additionalProperties`{where} must be false or left out"
        if unknown := [name for name in schema.get("required", ()) if name not in properties]:
            yield f"`required`{where} names {unknown[0][:100]!r}, which is not among the properties"
        self.optional += len(properties.keys() - {*schema.get("required", ())})
        for name, each in properties.items():
            yield from self._faults(each, f"{place}/properties/{name[:100]}")

    def _faults_of_reference(self, reference: Any, place: str) -> Iterator[str]:
        target = str(reference).removeprefix("#/$defs/")
        if target not in self.definitions or target == reference:
            yield f"`$ref` at {place} must name one of its `$defs`"
        else:
            yield from self._faults_of_definition(target, place)

    def _faults_of_definition(self, name: str, place: str) -> Iterator[str]:
        if name in self.within:
            yield f"it contains itself: `$ref` at {place}"
        elif name not in self.seen:
            self.seen.add(name)
            self.within.append(name)
            yield from self._faults(self.definitions[name], f"/$defs/{name[:100]}")
            self.within.pop()


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
