"""Checks of schemas before they are stored: valid, self-contained, and cheap to compare with."""

from __future__ import annotations

from collections.abc import Iterator

import jsonschema_rs
from jsonschema import Draft202012Validator
from referencing.exceptions import Unresolvable

from shared.contracts.json_schema.keywords import matcher
from shared.contracts.json_schema.values import ENDLESS, TOO_LONG, Schema, anonymous, resolver, truncate, violations
from shared.contracts.strict_json import JsonValue, check
from shared.errors import InvalidDefinition, InvalidInput

DIALECT = "https://json-schema.org/draft/2020-12/schema"

# Keywords that contain other schemas (2020-12, and `definitions` of older drafts).
HOLD_ONE = frozenset(
    "additionalProperties contains contentSchema else if items not propertyNames then unevaluatedItems "
    "unevaluatedProperties".split()
)
HOLD_LIST = frozenset("allOf anyOf oneOf prefixItems".split())
HOLD_MAP = frozenset("$defs definitions dependentSchemas patternProperties properties".split())

KEYWORDS = (
    frozenset(Draft202012Validator.VALIDATORS)
    | HOLD_ONE
    | HOLD_LIST
    | HOLD_MAP
    | frozenset(
        "$anchor $comment $dynamicAnchor $id $schema $vocabulary contentEncoding contentMediaType default deprecated "
        "description examples maxContains minContains readOnly title writeOnly".split()
    )
)

# Keywords of other drafts and OpenAPI 3.0 that 2020-12 ignores silently, and their replacements.
RENAMED = {
    "additionalItems": "`items`, next to `prefixItems`",
    "dependencies": "`dependentRequired` or `dependentSchemas`",
    "nullable": '`"type": ["string", "null"]`, with the actual type in place of "string"',
    "$recursiveRef": "`$ref` or `$dynamicRef`",
}

# One value of each kind: a schema that refers to itself without end does so for at least one of them.
SAMPLES: tuple[JsonValue, ...] = (None, 0, "", [], {})


def check_schema(schema: JsonValue, *, where: str) -> None:
    """Check that a value is a JSON Schema whose references stay inside it.

    Args:
        schema: the candidate.
        where: its name in the message, such as `agent SearchAgent, input_schema`.

    Raises:
        InvalidDefinition: names the path of the fault.
    """
    if not isinstance(schema, dict):
        raise InvalidDefinition(f"{where}: a schema must be an object, not {type(schema).__name__}.")
    _check_meta(schema, where)
    parts = _Parts(schema)
    for path, part in parts:
        for at, fault in _faults(parts, path, part):
            raise InvalidDefinition(f"{where}: {truncate(path + at)}: {fault}.", path=path + at)
    for sample in SAMPLES:
        found = violations(schema, sample)
        if found in (ENDLESS, TOO_LONG):
            raise InvalidDefinition(f"{where}: $: {found[0]['message']}.", path="$")


def check_dialect(schema: Schema, *, where: str) -> None:
    """Refuse keywords of other drafts that 2020-12 ignores silently.

    This is for submitted schemas: earlier releases stored such keywords, and those definitions still run.

    Raises:
        InvalidDefinition: names the path and the replacement.
    """
    for path, part in _subschemas(schema, "$"):
        for keyword in RENAMED.keys() & part.keys():
            if part[keyword]:
                raise InvalidDefinition(
                    f"{where}: {truncate(path)}.{keyword}: draft 2020-12 has no such keyword and would ignore it. "
                    f"Write {RENAMED[keyword]}.",
                    path=f"{path}.{keyword}",
                )


def check_keywords(schema: Schema, *, where: str) -> None:
    """Refuse names that are no keywords, which JSON Schema ignores silently: a misspelt one would change the meaning.

    Raises:
        InvalidDefinition: names the path and the keyword.
    """
    for path, part in _subschemas(schema, "$"):
        for keyword in sorted(part.keys() - KEYWORDS):
            raise InvalidDefinition(
                f"{where}: {truncate(path)}: {truncate(keyword)!r} is no keyword of JSON Schema. The name of an "
                "argument belongs under `properties`: {properties: {amount: {exclusiveMinimum: 100}}}.",
                path=path,
            )


def _check_meta(schema: JsonValue, where: str) -> None:
    """Check a schema, or a part that a reference leads to, against the metaschema."""
    try:
        check(schema, what=where)  # deep nesting would crash the process below
        # The library would fetch any other metaschema that `$schema` names.
        jsonschema_rs.meta.validate({**schema, "$schema": DIALECT} if isinstance(schema, dict) else schema)
    except jsonschema_rs.ValidationError as error:
        at = "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path)
        raise InvalidDefinition(
            f"{where} is not a valid JSON Schema (2020-12): {truncate(at)}: {truncate(error.message)}.", path=at
        ) from None
    except InvalidInput as error:
        raise InvalidDefinition(error.message, **error.detail) from None


def _subschemas(schema: JsonValue, path: str) -> Iterator[tuple[str, Schema]]:
    """Yield the schema and all schemas inside it, with their paths."""
    stack = [(path, schema)]
    while stack:
        path, schema = stack.pop()
        if not isinstance(schema, dict):
            continue
        yield path, schema
        # A long key above many schemas would be repeated in the path of each.
        path = truncate(path)
        for keyword, value in schema.items():
            if keyword in HOLD_ONE:
                stack.append((f"{path}.{keyword}", value))
            elif keyword in HOLD_LIST:
                stack.extend((f"{path}.{keyword}[{index}]", part) for index, part in enumerate(value))
            elif keyword in HOLD_MAP and isinstance(value, dict):
                stack.extend((f"{path}.{keyword}.{name}", part) for name, part in value.items())


class _Parts:
    """A schema and all schemas inside it, with their paths: each once, including those that only references lead to."""

    def __init__(self, root: Schema):
        self.root = root
        self._resolve = resolver(anonymous(root))
        self._listed: list[tuple[str, Schema]] = []
        self._known: set[int] = set()
        self._add(root, "$")

    def __iter__(self) -> Iterator[tuple[str, Schema]]:
        return iter(self._listed)  # grows during the iteration

    def refers_inside(self, reference: str, path: str) -> bool:
        """Return whether a reference leads to a valid schema in the same document."""
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
    """Yield the faults of one schema that the metaschema allows, but that we cannot enforce or do not want."""
    if str(part.get("$schema", DIALECT)).removesuffix("#") != DIALECT:
        yield (
            ".$schema",
            f"only draft 2020-12 is supported, not {part['$schema']!r}. Remove `$schema`: most schemas mean the "
            "same in draft 2020-12, and renamed keywords are refused with their replacements",
        )
    if "$id" in part and part is not parts.root:
        yield (
            ".$id",
            "only the root of the schema may have an `$id`: name a part with `$anchor`, or put it under `$defs`",
        )
    for name in ("$ref", "$dynamicRef"):
        if name in part and not parts.refers_inside(part[name], f"{path}.{name}"):
            yield f".{name}", f"the reference {part[name]!r} points to nothing inside the schema"
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
            f"the regular expression {truncate(pattern)!r} is not supported: it must be an ECMA 262 expression "
            "without look-around and back-references, and its repetitions must not make it too large"
        )
    return None
