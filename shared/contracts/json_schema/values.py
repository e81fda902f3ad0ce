"""Checks of values against schemas: every violation with its path."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from itertools import islice
from typing import Any

from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from shared.contracts.json_schema.keywords import MAX_SECONDS, Comparison, TakesTooLong
from shared.contracts.strict_json import JsonValue, canonical
from shared.errors import MinionError

Schema = dict[str, Any]

MAX_VIOLATIONS = 50
MAX_EXAMINED = 1000
MAX_MESSAGE = 300

ENDLESS = [{"path": "$", "message": "the schema refers to itself without end"}]
TOO_LONG = [
    {
        "path": "$",
        "message": f"comparing it with its schema takes more than {MAX_SECONDS:g} s of processor time; "
        "a smaller value or a simpler schema is needed",
    }
]


def violations(schema: Schema | bool, value: JsonValue, *, within: Schema | None = None) -> list[dict[str, str]]:
    """Return the violations of a schema, each `{"path", "message"}`, in the order of their paths (up to 50).

    Args:
        within: the whole schema that references lead into, if `schema` is a part of one.
    """
    document, resolve = _read(canonical(schema if within is None else within))
    try:
        errors = islice(Comparison(resolve).descend(value, document if within is None else schema), MAX_EXAMINED)
        found = [{"path": truncate(error.json_path), "message": truncate(error.message)} for error in errors]
    except TakesTooLong:
        return TOO_LONG
    except Unresolvable as error:
        return [{"path": "$", "message": f"the schema refers to something it does not contain: {error.ref}"}]
    except RecursionError:
        return ENDLESS
    return sorted(found, key=lambda fault: fault["path"])[:MAX_VIOLATIONS]


def validate(schema: Schema | None, value: JsonValue, *, what: str, error: type[MinionError]) -> None:
    """Check a value against a schema; None allows everything.

    Raises:
        error: with the first violations and their paths in the text, and all of them in `detail["violations"]`.
    """
    if schema is None:
        return
    if faults := violations(schema, value):
        listed = "; ".join(f"{fault['path']}: {fault['message']}" for fault in faults[:10])
        more = f"; and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise error(f"{what} does not match its schema: {listed}{more}.", violations=faults)


@lru_cache(maxsize=1024)
def _read(schema: str) -> tuple[Schema, Callable[[str], Schema | bool]]:
    """Return a schema from its text, and the resolver of its references. Nothing is ever fetched."""
    document = anonymous(json.loads(schema))
    return document, resolver(document)


def resolver(document: Schema) -> Callable[[str], Schema | bool]:
    resolver = Registry().with_resource("", DRAFT202012.create_resource(document)).resolver()
    return lambda reference: resolver.lookup(reference).contents


def anonymous(schema: Schema) -> Schema:
    """Return the schema without the keywords that make the library use its own validator, or another base URI."""
    return {key: value for key, value in schema.items() if key not in ("$schema", "$id")}


def truncate(text: str) -> str:
    """Keep only the two ends of a long path or message."""
    return text if len(text) <= MAX_MESSAGE else text[:200] + " … " + text[-80:]
