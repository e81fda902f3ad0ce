"""JSON Schema (draft 2020-12): schemas are checked when they are stored, values whenever they cross a border.

A schema comes from whoever may store definitions, a value from whoever may submit a task: neither may hang the
process that compares them. So regular expressions are those of Rust's `regex` (no look-around, no back-references:
matching takes linear time), `uniqueItems` compares digests instead of pairs, and references stay inside the schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import FormatError, SchemaError, ValidationError
from jsonschema.validators import extend
from pydantic_core import SchemaError as PatternError
from pydantic_core import SchemaValidator, core_schema
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from shared.errors import InvalidDefinition, MinionError
from shared.json_values import JsonValue, canonical, digest

MAX_VIOLATIONS = 50
MAX_EXAMINED = 1000
MAX_MESSAGE = 300
MAX_FORMATTED = 2048  # some formats are parsed by grammars that take minutes for a megabyte
DIALECT = Draft202012Validator.META_SCHEMA["$id"]

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
    _check_meta(schema, where)
    for path, part in _subschemas(schema, "$"):
        for at, fault in _faults(schema, part):
            raise InvalidDefinition(f"{where}: {_cut(path + at)}: {fault}.", path=path + at)
    if any(violations(schema, sample) == ENDLESS for sample in SAMPLES):
        raise InvalidDefinition(f"{where}: $: {ENDLESS[0]['message']}.", path="$")


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
    try:
        errors = islice(_validator(canonical(schema)).iter_errors(value), MAX_EXAMINED)
        found = [{"path": _cut(error.json_path), "message": _cut(error.message)} for error in errors]
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


def _check_meta(schema: JsonValue, where: str, path: str = "$") -> None:
    try:
        Draft202012Validator.check_schema(schema, format_checker=FormatChecker(()))
    except SchemaError as error:
        at = path + error.json_path.removeprefix("$")
        raise InvalidDefinition(
            f"{where} is not a valid JSON Schema (2020-12): {_cut(at)}: {_cut(error.message)}.", path=at
        ) from None
    except RecursionError:
        raise InvalidDefinition(f"{where} is nested too deeply.") from None


def _subschemas(schema: JsonValue, path: str) -> Iterator[tuple[str, Schema]]:
    """The schema and all schemas inside it, with their paths."""
    stack = [(path, schema)]
    while stack:
        path, schema = stack.pop()
        if not isinstance(schema, dict):
            continue
        yield path, schema
        for keyword, value in schema.items():
            if keyword in HOLD_ONE:
                stack.append((f"{path}.{keyword}", value))
            elif keyword in HOLD_LIST:
                stack.extend((f"{path}.{keyword}[{index}]", part) for index, part in enumerate(value))
            elif keyword in HOLD_MAP and isinstance(value, dict):
                stack.extend((f"{path}.{keyword}.{name}", part) for name, part in value.items())


def _faults(root: Schema, part: Schema) -> Iterator[tuple[str, str]]:
    """What the metaschema lets through in one schema, and we cannot hold to or do not want."""
    if str(part.get("$schema", DIALECT)).removesuffix("#") != DIALECT:
        yield (
            ".$schema",
            f"only draft 2020-12 is supported, not {part['$schema']!r}. Leave `$schema` out: most schemas mean the "
            "same there, and what has another name since is refused with it",
        )
    if "$id" in part and part is not root:
        yield ".$id", "only the whole schema may have an `$id`; name a part with `$anchor` or put it under `$defs`"
    for name in ("$ref", "$dynamicRef"):
        if name in part and not _refers_inside(root, part[name]):
            yield f".{name}", f"the reference {part[name]!r} points at nothing inside the schema"
    for at, pattern in _patterns(part):
        if fault := _pattern_fault(pattern):
            yield at, fault
    if "patternProperties" in part and any("unevaluatedProperties" in other for _, other in _subschemas(root, "$")):
        yield ".patternProperties", "a schema with `unevaluatedProperties` cannot have `patternProperties`"


def _refers_inside(root: Schema, reference: str) -> bool:
    """Whether a reference leads to a valid schema in the same document."""
    resolver = Registry().with_resource("", DRAFT202012.create_resource(_anonymous(root))).resolver()
    try:
        target = resolver.lookup(reference).contents
        if not isinstance(target, bool):
            _check_meta(target, reference)
    except (Unresolvable, ValueError, AttributeError, TypeError, InvalidDefinition):
        return False
    return isinstance(target, dict | bool)


def _patterns(part: Schema) -> Iterator[tuple[str, str]]:
    if "pattern" in part:
        yield ".pattern", part["pattern"]
    for pattern in part.get("patternProperties", ()):
        yield f".patternProperties.{pattern}", pattern


def _pattern_fault(pattern: str) -> str | None:
    try:
        _matcher(pattern)
    except PatternError as error:
        reason = str(error).strip().splitlines()[-1].removeprefix("error: ").removeprefix("SchemaError: ").rstrip(".")
        return f"the regular expression {_cut(pattern)!r} is not supported: {_cut(reason)}"
    return None


@lru_cache(maxsize=1024)
def _matcher(pattern: str) -> SchemaValidator:
    return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex", strict=True))


def _matches(pattern: str, text: str) -> bool:
    """Whether the pattern is found in the text."""
    return _matcher(pattern).isinstance_python(text)


def _pattern(validator: Any, pattern: str, value: JsonValue, schema: Schema) -> Iterator[ValidationError]:
    if validator.is_type(value, "string") and not _matches(pattern, value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, patterns: dict[str, Any], value: JsonValue, schema: Schema
) -> Iterator[ValidationError]:
    if validator.is_type(value, "object"):
        for pattern, part in patterns.items():
            for name in value:
                if _matches(pattern, name):
                    yield from validator.descend(value[name], part, path=name, schema_path=pattern)


def _additional_properties(
    validator: Any, allowed: JsonValue, value: JsonValue, schema: Schema
) -> Iterator[ValidationError]:
    if not validator.is_type(value, "object"):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    extras = [name for name in value if name not in known and not any(_matches(p, name) for p in patterns)]
    if validator.is_type(allowed, "object"):
        for name in extras:
            yield from validator.descend(value[name], allowed, path=name)
    elif extras and not allowed:
        listed, verb = ", ".join(map(repr, sorted(extras)[:20])), "was" if len(extras) == 1 else "were"
        yield ValidationError(f"Additional properties are not allowed ({listed} {verb} unexpected)")


def _format(validator: Any, name: str, value: JsonValue, schema: Schema) -> Iterator[ValidationError]:
    if not validator.is_type(value, "string"):
        return
    if len(value) > MAX_FORMATTED:
        yield ValidationError(f"{_cut(value)!r} is longer than {MAX_FORMATTED:,} characters and is not a {name!r}")
        return
    try:
        validator.format_checker.check(value, name)
    except FormatError:
        yield ValidationError(f"{value!r} is not a {name!r}")


def _multiple_of(validator: Any, factor: float, value: JsonValue, schema: Schema) -> Iterator[ValidationError]:
    """By the digits as they are written: as binary fractions, 19.99 is no multiple of 0.01."""
    if validator.is_type(value, "number") and Fraction(repr(value)) % Fraction(repr(factor)):
        yield ValidationError(f"{value!r} is not a multiple of {factor!r}")


def _unique_items(validator: Any, unique: bool, value: JsonValue, schema: Schema) -> Iterator[ValidationError]:
    if unique and validator.is_type(value, "array") and len({digest(item) for item in value}) < len(value):
        yield ValidationError(f"{_cut(repr(value))} has non-unique elements")


Validator: Any = extend(
    Draft202012Validator,
    {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "uniqueItems": _unique_items,
        "format": _format,
        "multipleOf": _multiple_of,
    },
)


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Any:
    # An empty registry: a `$ref` to an address is never fetched.
    return Validator(_anonymous(json.loads(schema)), registry=Registry(), format_checker=FormatChecker())


def _anonymous(schema: Schema) -> Schema:
    """The schema without what makes the library put a validator of its own, or another base, in the place of ours."""
    return {key: value for key, value in schema.items() if key not in ("$schema", "$id")}


def _cut(text: str) -> str:
    """jsonschema quotes whole values in its messages; a record needs only the beginning."""
    return text if len(text) <= MAX_MESSAGE else text[:200] + " … " + text[-80:]
