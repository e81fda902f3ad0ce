"""Schemas that servers list, in the dialect of stored definitions: draft 2020-12.

Servers write what their libraries generate: draft-04, draft-07, OpenAPI 3.0, null for what is absent, patterns with
look-around. The result accepts everything that the listed schema accepts. It may accept more, because a pattern that
cannot be matched here is left out: the server checks its arguments itself.
"""

from __future__ import annotations

from typing import Any

from shared.contracts.json_schema.keywords import matcher
from shared.contracts.json_schema.schemas import DIALECT, HOLD_LIST, HOLD_MAP, HOLD_ONE

VALUES = frozenset({"const", "default", "enum", "example", "examples"})
"""Keywords whose values are no schemas, and may be null."""
LIMITS = {"exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}


def translated(schema: Any) -> Any:
    """Return a schema as one of draft 2020-12. What is not valid in any dialect is left as it is."""
    if not isinstance(schema, dict):
        return schema
    made = {name: value for name, value in schema.items() if value is not None or name in VALUES}
    if str(made.get("$schema", DIALECT)).removesuffix("#") != DIALECT:
        del made["$schema"]
    if isinstance(pattern := made.get("pattern"), str) and not _can_match(pattern):
        del made["pattern"]
    _rewrite_limits(made)
    _rewrite_items(made)
    _rewrite_dependencies(made)
    inner = {name: _inside(name, value) for name, value in made.items()}
    return _nullable(inner)


def _inside(keyword: str, value: Any) -> Any:
    if keyword in HOLD_ONE:
        return translated(value)
    if keyword in HOLD_LIST and isinstance(value, list):
        return [translated(part) for part in value]
    if keyword in HOLD_MAP and isinstance(value, dict):
        return {name: translated(part) for name, part in value.items()}
    return value


def _rewrite_limits(schema: dict[str, Any]) -> None:
    """In draft-04, `exclusiveMinimum` says whether `minimum` is exclusive."""
    for exclusive, limit in LIMITS.items():
        if isinstance(is_exclusive := schema.get(exclusive), bool):
            del schema[exclusive]
            if is_exclusive and limit in schema:
                schema[exclusive] = schema.pop(limit)


def _rewrite_items(schema: dict[str, Any]) -> None:
    """Up to draft-07, a list of `items` is what is `prefixItems` now."""
    further = schema.pop("additionalItems", None)
    if isinstance(items := schema.get("items"), list):
        del schema["items"]
        schema["prefixItems"] = items
        if further is not None:
            schema["items"] = further


def _rewrite_dependencies(schema: dict[str, Any]) -> None:
    found = schema.get("dependencies")
    if not isinstance(found, dict):
        return
    del schema["dependencies"]
    names = {name: needed for name, needed in found.items() if isinstance(needed, list)}
    schemas = {name: needed for name, needed in found.items() if name not in names}
    schema.update({key: value for key, value in (("dependentRequired", names), ("dependentSchemas", schemas)) if value})


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """In OpenAPI 3.0, `nullable` adds null to a type."""
    is_nullable = schema.pop("nullable", False)
    if is_nullable is not True:
        return schema
    kind = schema.get("type")
    if isinstance(kind, str) and not schema.keys() & {"enum", "const"}:
        return {**schema, "type": [kind, "null"] if kind != "null" else kind}
    return {"anyOf": [schema, {"type": "null"}]}


def _can_match(pattern: str) -> bool:
    try:
        matcher(pattern)
    except ValueError:
        return False
    return True
