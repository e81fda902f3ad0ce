"""Comparison of two schemas: reports the pairs that certainly have no common value.

JSON Schemas cannot be compared in general, so uncertain pairs count as fitting. Our own comparison runs first, because
it gives better reasons. Each keyword only narrows a schema, so values that two keywords exclude stay excluded whatever
the other keywords allow. `jsonschema_rs` finds more misfits, but reports only their paths.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from shared.contracts.json_schema.values import TOO_LONG, Schema, anonymous, truncate, violations

KINDS = {
    "null": "null",
    "boolean": "a boolean",
    "number": "a number",
    "string": "a string",
    "array": "an array",
    "object": "an object",
}
"""Types, as messages name them. Integers count as numbers."""
PROGRAM = Path(__file__).with_name("satisfiability.py")
MAX_WAIT = 5.0  # seconds: less than the default lease, because a transaction may be open
WHOLE = "urn:minions:whole"


@dataclass(frozen=True)
class Pair:
    """The schema of the given values and that of the wanted values; None allows everything.

    Attributes:
        element_of: a property of `given` that is a list: its elements are the given values.
    """

    given: Schema | bool | None
    wanted: Schema | bool | None
    element_of: str | None = None

    def fault(self) -> str | None:
        """Return the reason why no value can fit, as far as our own comparison finds one."""
        given = self.given if self.element_of is None else _element(self.given, self.element_of)
        return _misfit(given, self.wanted, "$", within=self.wanted if isinstance(self.wanted, dict) else None)

    def documents(self) -> list[Schema] | None:
        """Return both schemas, each with the targets of its references, or None if one of them allows everything."""
        if not (isinstance(self.given, dict) and isinstance(self.wanted, dict) and self.given and self.wanted):
            return None
        given, wanted = anonymous(self.given), anonymous(self.wanted)
        if self.element_of is not None:
            name = quote(self.element_of.replace("~", "~0").replace("/", "~1"))
            given = {"$ref": f"{WHOLE}#/properties/{name}/items", "$defs": {"whole": {**given, "$id": WHOLE}}}
        return [given, wanted]


def misfits(pairs: Sequence[Pair]) -> list[str | None]:
    """Return a reason with its path for each pair that no value can fit, and None for the others."""
    faults = [pair.fault() for pair in pairs]
    undecided = [
        [position, *documents]
        for position, pair in enumerate(pairs)
        if not faults[position] and (documents := pair.documents())
    ]
    for position, path in (_impossible(undecided) if undecided else {}).items():
        faults[position] = f"{truncate(path)}: no value is allowed by both schemas"
    return faults


def _impossible(pairs: list[list[Any]]) -> dict[int, str]:
    """Return the paths at which pairs exclude every value, by position, as far as they are found within the bounds."""
    try:
        lines = _run(json.dumps(pairs).encode()).splitlines()
        return dict(json.loads(line) for line in lines if line.endswith(b"]"))
    except (OSError, ValueError):
        return {}


def _run(pairs: bytes) -> bytes:
    command = [sys.executable or "python3", "-I", "-S", str(PROGRAM), *map(os.path.abspath, sys.path)]
    # The process runs native code on untrusted schemas, so it gets none of our secrets.
    environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    try:
        return subprocess.run(
            command, input=pairs, capture_output=True, timeout=MAX_WAIT, check=False, cwd="/", env=environment
        ).stdout
    except subprocess.TimeoutExpired as error:
        return error.stdout or b""


def _misfit(given: Schema | bool | None, wanted: Schema | bool | None, path: str, within: Schema | None) -> str | None:
    if given is None or wanted is None or isinstance(given, bool) or isinstance(wanted, bool):
        return f"{path}: no value is accepted" if wanted is False else None
    given_kinds, wanted_kinds = _kinds(given), _kinds(wanted)
    if not given_kinds & wanted_kinds:
        return f"{path}: the value is {_list(given_kinds)}, but {_list(wanted_kinds)} is required"
    if values := _values(given):
        if any(violations(wanted, value, within=within) in ([], TOO_LONG) for value in values):
            return None
        return f"{path}: the value is {' or '.join(map(repr, values))[:200]}, which is not accepted"
    return _object_misfit(given, wanted, path, within) if given_kinds & wanted_kinds == {"object"} else None


def _element(schema: Schema | bool | None, name: str) -> Schema | None:
    """Return the schema of the elements of a property that is a list."""
    properties = schema.get("properties", {}) if isinstance(schema, dict) else {}
    listed = properties.get(name)
    element: Schema | None = listed.get("items") if isinstance(listed, dict) else None
    return element


def _kinds(schema: Schema) -> frozenset[str]:
    said = schema.get("type")
    if said is None:
        return frozenset(KINDS)
    return frozenset("number" if kind == "integer" else kind for kind in ([said] if isinstance(said, str) else said))


def _values(schema: Schema) -> list[Any]:
    """Return all values that a schema allows, if it lists them."""
    return [schema["const"]] if "const" in schema else list(schema.get("enum", []))


def _object_misfit(given: Schema, wanted: Schema, path: str, within: Schema | None) -> str | None:
    comes, taken = given.get("properties", {}), wanted.get("properties", {})
    needed, sure = set(wanted.get("required", [])), set(given.get("required", []))
    for name in sorted(needed - set(comes)):
        if _closed(given):
            return f"{path}: {name!r} is required, but never given"
    for name in sorted(sure - set(taken)):
        if _closed(wanted):
            return f"{path}: {name!r} is always given, but not allowed"
    for name in sorted((needed | sure) & set(comes) & set(taken)):
        if fault := _misfit(comes[name], taken[name], f"{path}.{name}", within):
            return fault
    return None


def _closed(schema: Schema) -> bool:
    return schema.get("additionalProperties") is False and not schema.get("patternProperties")


def _list(kinds: frozenset[str]) -> str:
    return " or ".join(KINDS[kind] for kind in sorted(kinds))
