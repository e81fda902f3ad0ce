"""Names in the OpenAPI document: generators of clients make methods of operations' ids, and types of named schemas."""

from __future__ import annotations

import json
import re
from typing import Any

from fastapi.routing import APIRoute

DEFINITIONS, COMPONENTS = "#/$defs/", "#/components/schemas/"
PAGE = re.compile(r'\bItemPage_(\w+)_"')
"""The framework's name of a page of items: at the end of references, or as a key."""


def operation_id(route: APIRoute) -> str:
    """Return the id of an endpoint's operation: the name of its function, or the `name` that its route has instead."""
    return route.name


def name_schemas(document: dict[str, Any]) -> dict[str, Any]:
    """Return an OpenAPI document in which bodies and their parts are named components, and pages are named by items.

    Raises:
        RuntimeError: a body has no title, or two schemas or operations have the same name.
    """
    document = json.loads(PAGE.sub(r'\1Page"', json.dumps(document)))
    schemas = document["components"]["schemas"]
    known: set[str] = set()
    for path, methods in document["paths"].items():
        for operation in methods.values():
            _add(known, operation["operationId"], path)
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if content and "$ref" not in content["schema"]:
                content["schema"] = _lift(content["schema"], schemas)
    return document


def _add(known: set[str], name: str, path: str) -> None:
    if name in known:
        raise RuntimeError(f"Two endpoints have the name {name!r} (one at {path}): give its route another `name`.")
    known.add(name)


def _lift(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """Store a schema and its definitions as components, and return the reference to it."""
    if not (name := schema.get("title", "")).isidentifier():
        raise RuntimeError(f"The schema of a body must have a title that can name a type, not {name!r}.")
    lifted = _with_components(schema, schemas)
    if schemas.setdefault(name, lifted) != lifted:
        raise RuntimeError(f"Two different schemas have the name {name!r}: rename a class, or its title.")
    return {"$ref": COMPONENTS + name}


def _with_components(value: Any, schemas: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_with_components(item, schemas) for item in value]
    if not isinstance(value, dict):
        return value
    for definition in value.get("$defs", {}).values():
        _lift(definition, schemas)
    kept = {name: _with_components(item, schemas) for name, item in value.items() if name != "$defs"}
    if isinstance(kept.get("$ref"), str):
        kept["$ref"] = kept["$ref"].replace(DEFINITIONS, COMPONENTS)
    return kept
