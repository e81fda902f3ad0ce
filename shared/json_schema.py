"""JSON Schema (draft 2020-12): schemas are checked when they are stored, values whenever they cross a border."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable

from shared.errors import InvalidDefinition, MinionError
from shared.json_values import JsonValue, canonical

MAX_VIOLATIONS = 50

Schema = dict[str, Any]


def check_schema(schema: JsonValue, *, where: str) -> None:
    """Checks that a value is a JSON Schema whose references stay inside it.

    Args:
        schema: the candidate.
        where: how the message calls it, such as `agent SearchAgent, input_schema`.

    Raises:
        InvalidDefinition: the message names the path of the fault.
    """
    if not isinstance(schema, dict):
        raise InvalidDefinition(f"{where}: a schema is an object, not {type(schema).__name__}.")
    dialect = schema.get("$schema", Draft202012Validator.META_SCHEMA["$id"])
    if dialect != Draft202012Validator.META_SCHEMA["$id"]:
        raise InvalidDefinition(f"{where}: $.$schema: only draft 2020-12 is supported, not {dialect!r}.")
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise InvalidDefinition(
            f"{where} is not a valid JSON Schema (2020-12): {_path(error)}: {_short(error.message)}.",
            path=_path(error),
        ) from None
    _check_references(schema, where)


def violations(schema: Schema, value: JsonValue) -> list[dict[str, str]]:
    """All violations of a schema, each `{"path", "message"}`, in the order of their paths (50 at most)."""
    try:
        found = [
            {"path": _path(error), "message": _short(error.message)}
            for error in _validator(canonical(schema)).iter_errors(value)
        ]
    except Unresolvable as error:
        return [{"path": "$", "message": f"the schema refers to something it does not contain: {error.ref}"}]
    except RecursionError:
        return [{"path": "$", "message": "the schema refers to itself without end"}]
    return sorted(found, key=lambda fault: fault["path"])[:MAX_VIOLATIONS]


def validate(schema: Schema | None, value: JsonValue, *, what: str, error: type[MinionError]) -> None:
    """Checks a value against a schema; None allows everything.

    Raises:
        error: with every violation and its path in the text and in `detail["violations"]`.
    """
    if schema is None:
        return
    if faults := violations(schema, value):
        listed = "; ".join(f"{fault['path']}: {fault['message']}" for fault in faults[:10])
        more = f"; and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise error(f"{what} does not match its schema: {listed}{more}.", violations=faults)


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Draft202012Validator:
    # An empty registry: a `$ref` to an address is never fetched.
    return Draft202012Validator(json.loads(schema), registry=Registry(), format_checker=FormatChecker())


def _check_references(schema: Schema, where: str) -> None:
    resolver = Registry().with_resource("", _resource(schema)).resolver()
    for path, reference in _references(schema, "$"):
        try:
            resolver.lookup(reference)
        except (Unresolvable, ValueError):
            raise InvalidDefinition(
                f"{where}: {path}: the reference {reference!r} points at nothing inside the schema.",
                path=path,
            ) from None


def _resource(schema: Schema) -> Any:
    from referencing.jsonschema import DRAFT202012

    return DRAFT202012.create_resource(schema)


def _references(node: JsonValue, path: str) -> Iterable[tuple[str, str]]:
    stack = [(node, path)]
    while stack:
        node, path = stack.pop()
        if isinstance(node, dict):
            for key, value in node.items():
                if key in ("$ref", "$dynamicRef") and isinstance(value, str):
                    yield f"{path}.{key}", value
                elif key not in ("const", "enum", "default", "examples"):
                    stack.append((value, f"{path}.{key}"))
        elif isinstance(node, list):
            stack.extend((value, f"{path}[{index}]") for index, value in enumerate(node))


def _path(error: ValidationError | SchemaError) -> str:
    return str(error.json_path)


def _short(message: str) -> str:
    """jsonschema quotes whole values in its messages; a record needs only the beginning."""
    return message if len(message) <= 300 else message[:200] + " … " + message[-80:]
