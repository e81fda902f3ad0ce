"""Arguments that a tool's schema asks to repeat in headers: the annotation `x-mcp-header` of 2026-07-28."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from shared.mcp.protocol import header_value

ANNOTATION = "x-mcp-header"
PREFIX = "Mcp-Param-"
TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,100}")
TYPES = ("string", "integer", "boolean")

Path = tuple[str, ...]


def headers_of(schema: Mapping[str, Any] | None, arguments: Any) -> dict[str, str]:
    """Return the headers that repeat arguments of a call. The schema must have no fault."""
    found = {}
    for path, part in _properties(schema or {}):
        if ANNOTATION in part and (text := _text(_at(path, arguments))) is not None:
            found[PREFIX + part[ANNOTATION]] = header_value(text)
    return found


def fault_of(schema: Mapping[str, Any]) -> str | None:
    """Return the reason why the protocol has clients leave out a tool with this schema; None if there is none."""
    reachable = list(_properties(schema))
    if _count(schema) != sum(ANNOTATION in part for _, part in reachable):
        return f"it has {ANNOTATION} at a place that is no property of a property"
    seen: set[str] = set()
    for path, part in reachable:
        if ANNOTATION not in part:
            continue
        where, token = ".".join(path)[:200], part[ANNOTATION]
        if not isinstance(token, str) or not TOKEN.fullmatch(token):
            return f"the {ANNOTATION} of its property {where!r} must be the name of a header"
        if part.get("type") not in TYPES:
            return f"its property {where!r} has {ANNOTATION}, so its type must be string, integer or boolean"
        if token.lower() in seen:
            return f"the {ANNOTATION} {token!r} is not unique"
        seen.add(token.lower())
    return None


def _properties(schema: Any, path: Path = ()) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield the properties that are reached through properties alone, with their paths."""
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    for name, part in properties.items() if isinstance(properties, Mapping) else ():
        if isinstance(part, Mapping):
            yield (*path, name), part
            yield from _properties(part, (*path, name))


def _count(value: Any) -> int:
    """Return how many schemas have the annotation. Names of properties do not count."""
    if isinstance(value, list):
        return sum(map(_count, value))
    if not isinstance(value, Mapping):
        return 0
    own = int(ANNOTATION in value)
    return own + sum(_in_member(name, part) for name, part in value.items())


def _in_member(name: str, part: Any) -> int:
    if name in ("default", "const", "enum", "examples"):
        return 0
    if name in ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas") and isinstance(
        part, Mapping
    ):
        return sum(map(_count, part.values()))
    return _count(part)


def _at(path: Path, arguments: Any) -> Any:
    for name in path:
        arguments = arguments.get(name) if isinstance(arguments, Mapping) else None
    return arguments


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int) else None
