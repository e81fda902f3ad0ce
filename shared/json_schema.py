"""JSON Schema (draft 2020-12): schemas are checked when they are stored, values whenever they cross a border.

A schema comes from whoever may store definitions, a value from whoever may submit a task: neither may hang the
process that compares them. So regular expressions have no look-around and no back-references (matching takes linear
time), references stay inside the schema, values are quoted by their beginning, and a comparison
that takes `MAX_SECONDS` is given up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import islice
from typing import Any

import jsonschema_rs
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from shared.errors import InvalidDefinition, InvalidInput, MinionError
from shared.json_values import JsonValue, canonical, check
from shared.schema_keywords import MAX_SECONDS, Comparison, TakesTooLong, matcher

Schema = dict[str, Any]

MAX_VIOLATIONS = 50
MAX_EXAMINED = 1000
MAX_MESSAGE = 300
DIALECT = "https://json-schema.org/draft/2020-12/schema"

# Where a schema holds other schemas (2020-12, and `definitions` of older drafts).
HOLD_ONE = frozenset(
    "additionalProperties contains contentSchema else if items not propertyNames then unevaluatedItems "
    "unevaluatedProperties".split()
)
HOLD_LIST = frozenset("allOf anyOf oneOf prefixItems".split())
HOLD_MAP = frozenset("$defs definitions dependentSchemas patternProperties properties".split())

# What other drafts and OpenAPI 3.0 say, and 2020-12 passes over in silence.
RENAMED = {
    "additionalItems": "`items`, beside `prefixItems`",
    "dependencies": "`dependentRequired` or `dependentSchemas`",
    "nullable": '`"type": ["string", "null"]`, with its own type',
    "$recursiveRef": "`$ref` or `$dynamicRef`",
}

# One value of each kind: a schema that loops does so with one of them.
SAMPLES: tuple[JsonValue, ...] = (None, 0, "", [], {})
ENDLESS = [{"path": "$", "message": "the schema refers to itself without end"}]
TOO_LONG = [
    {
        "path": "$",
        "message": f"comparing it with its schema takes more than {MAX_SECONDS:g} s of processor time; "
        "a smaller value or a simpler schema is needed",
    }
]


def check_schema(schema: JsonValue, *, where: str) -> None:
    """Checks that a value is a JSON Schema whose references stay inside it.

    Args:
        schema: the candidate.
        where: how the message calls it, such as `agent SearchAgent, input_schema`.

    Raises:
        InvalidDefinition: the message names the path of the fault.
    """
    if not isinstance(schema, dict):
        raise InvalidDefinition(f"{where}: a schema must be an object, not {type(schema).__name__}.")
    _check_meta(schema, where)
    parts = _Parts(schema)
    for path, part in parts:
        for at, fault in _faults(parts, path, part):
            raise InvalidDefinition(f"{where}: {_cut(path + at)}: {fault}.", path=path + at)
    for sample in SAMPLES:
        found = violations(schema, sample)
        if found in (ENDLESS, TOO_LONG):
            raise InvalidDefinition(f"{where}: $: {found[0]['message']}.", path="$")


def check_dialect(schema: Schema, *, where: str) -> None:
    """Refuses what other drafts say by a keyword that 2020-12 passes over in silence.

    For schemas that come in: earlier releases have stored such keywords, and those definitions still run.

    Raises:
        InvalidDefinition: the message names the path, and what to write instead.
    """
    for path, part in _subschemas(schema, "$"):
        for keyword in RENAMED.keys() & part.keys():
            if part[keyword]:
                raise InvalidDefinition(
                    f"{where}: {_cut(path)}.{keyword}: draft 2020-12 does not know it, so nothing would hold to it. "
                    f"Write {RENAMED[keyword]}.",
                    path=f"{path}.{keyword}",
                )


def violations(schema: Schema, value: JsonValue) -> list[dict[str, str]]:
    """All violations of a schema, each `{"path", "message"}`, in the order of their paths (50 at most)."""
    document, resolve = _read(canonical(schema))
    try:
        errors = islice(Comparison(resolve).descend(value, document), MAX_EXAMINED)
        found = [{"path": _cut(error.json_path), "message": _cut(error.message)} for error in errors]
    except TakesTooLong:
        return TOO_LONG
    except Unresolvable as error:
        return [{"path": "$", "message": f"the schema refers to something it does not contain: {error.ref}"}]
    except RecursionError:
        return ENDLESS
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


def _check_meta(schema: JsonValue, where: str) -> None:
    """Checks a schema, or a part of one that a reference leads to, against the metaschema."""
    try:
        check(schema, what=where)  # deep nesting would end the process below
        # The library would fetch any other metaschema that `$schema` names.
        jsonschema_rs.meta.validate({**schema, "$schema": DIALECT} if isinstance(schema, dict) else schema)
    except jsonschema_rs.ValidationError as error:
        at = "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path)
        raise InvalidDefinition(
            f"{where} is not a valid JSON Schema (2020-12): {_cut(at)}: {_cut(error.message)}.", path=at
        ) from None
    except InvalidInput as error:
        raise InvalidDefinition(error.message, **error.detail) from None


def _subschemas(schema: JsonValue, path: str) -> Iterator[tuple[str, Schema]]:
    """The schema and all schemas inside it, with their paths."""
    stack = [(path, schema)]
    while stack:
        path, schema = stack.pop()
        if not isinstance(schema, dict):
            continue
        yield path, schema
        # A long key above many schemas would be in the path of each.
        path = _cut(path)
        for keyword, value in schema.items():
            if keyword in HOLD_ONE:
                stack.append((f"{path}.{keyword}", value))
            elif keyword in HOLD_LIST:
                stack.extend((f"{path}.{keyword}[{index}]", part) for index, part in enumerate(value))
            elif keyword in HOLD_MAP and isinstance(value, dict):
                stack.extend((f"{path}.{keyword}.{name}", part) for name, part in value.items())


class _Parts:
    """A schema and all schemas inside it, with their paths: each once, also where only a reference leads to it."""

    def __init__(self, root: Schema):
        self.root = root
        self._resolve = _resolver(_anonymous(root))
        self._listed: list[tuple[str, Schema]] = []
        self._known: set[int] = set()
        self._add(root, "$")

    def __iter__(self) -> Iterator[tuple[str, Schema]]:
        return iter(self._listed)  # grows while it is read

    def refers_inside(self, reference: str, path: str) -> bool:
        """Whether a reference leads to a valid schema in the same document."""
        try:
            target = self._resolve(reference)
            if isinstance(target, dict) and id(target) not in self._known:
                _check_meta(target, reference)
                self._add(target, path)
        except (Unresolvable, ValueError, AttributeError, TypeError, InvalidDefinition):
            return False
        return isinstance(target, dict | bool)

    def _add(self, schema: Schema, path: str) -> None:
        found = [(at, part) for at, part in _subschemas(schema, path) if id(part) not in self._known]
        self._listed += found
        self._known |= {id(part) for _, part in found}


def _faults(parts: _Parts, path: str, part: Schema) -> Iterator[tuple[str, str]]:
    """What the metaschema lets through in one schema, and we cannot hold to or do not want."""
    if str(part.get("$schema", DIALECT)).removesuffix("#") != DIALECT:
        yield (
            ".$schema",
            f"only draft 2020-12 is supported, not {part['$schema']!r}. Leave `$schema` out: most schemas mean the "
            "same there, and what has another name since is refused with it",
        )
    if "$id" in part and part is not parts.root:
        yield ".$id", "only the whole schema may have an `$id`; name a part with `$anchor` or put it under `$defs`"
    for name in ("$ref", "$dynamicRef"):
        if name in part and not parts.refers_inside(part[name], f"{path}.{name}"):
            yield f".{name}", f"the reference {part[name]!r} points at nothing inside the schema"
    for at, pattern in _patterns(part):
        if fault := _pattern_fault(pattern):
            yield at, fault


def _patterns(part: Schema) -> Iterator[tuple[str, str]]:
    if "pattern" in part:
        yield ".pattern", part["pattern"]
    for pattern in part.get("patternProperties", ()):
        yield f".patternProperties.{pattern}", pattern


def _pattern_fault(pattern: str) -> str | None:
    try:
        matcher(pattern)
    except ValueError:
        return (
            f"the regular expression {_cut(pattern)!r} is not supported: it must be one of ECMA 262 without "
            "look-around and back-references, and its repetitions must not make it too large"
        )
    return None


@lru_cache(maxsize=1024)
def _read(schema: str) -> tuple[Schema, Callable[[str], Schema | bool]]:
    """A schema from its text, and what its references lead to. Nothing is ever fetched."""
    document = _anonymous(json.loads(schema))
    return document, _resolver(document)


def _resolver(document: Schema) -> Callable[[str], Schema | bool]:
    resolver = Registry().with_resource("", DRAFT202012.create_resource(document)).resolver()
    return lambda reference: resolver.lookup(reference).contents


def _anonymous(schema: Schema) -> Schema:
    """The schema without what makes the library put a validator of its own, or another base, in the place of ours."""
    return {key: value for key, value in schema.items() if key not in ("$schema", "$id")}


def _cut(text: str) -> str:
    """A record needs only the ends of a long path or message."""
    return text if len(text) <= MAX_MESSAGE else text[:200] + " … " + text[-80:]
