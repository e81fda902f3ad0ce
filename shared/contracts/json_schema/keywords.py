"""Comparison of a value with a JSON Schema (draft 2020-12), keyword by keyword.

`jsonschema` has functions for the keywords. Those whose cost it does not limit are replaced: it quotes every invalid
value in full, keeps the faults of branches that no message shows, and creates a validator for each part of a value.
A comparison that still takes too long, as the product of a schema and a value can, is stopped.

The texts of faults must not change, because the journals of running tasks contain hashes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from time import thread_time
from typing import Any

import jsonschema_rs
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from shared.contracts.strict_json import JsonValue, digest, stable

MAX_SECONDS = 2.0  # of processor time
MAX_MATCHING = 1 << 34  # bytes of a compiled pattern times characters of a text: about `MAX_SECONDS` at worst
PATTERN_SIZES = tuple(1 << bits for bits in range(12, 24))
MAX_QUOTED = 200
MAX_LISTED = 20
MAX_FORMATTED = 2048  # some formats are parsed by grammars that take minutes for a megabyte

Schema = dict[str, Any]
Faults = Iterator[ValidationError]


class TakesTooLong(Exception):
    """A comparison has used `MAX_SECONDS`, or its next step might."""


class Comparison:
    """One comparison of a value with a schema. The functions of keywords use it to compare parts of both.

    Args:
        resolve: returns the schema that a reference leads to.
    """

    def __init__(self, resolve: Callable[[str], Schema | bool]) -> None:
        self.resolve = lru_cache(maxsize=None)(resolve)
        self._deadline = thread_time() + MAX_SECONDS

    def descend(
        self, instance: JsonValue, schema: Schema | bool, path: str | int | None = None, schema_path: Any = None
    ) -> Faults:
        """Yield the faults of a part of the value, which is at `path` below the current one."""
        for fault in self._faults(instance, schema):
            if path is not None:
                fault.path.appendleft(path)
            yield fault

    def fits(self, value: JsonValue, schema: Schema | bool) -> bool:
        """Return whether a value has no fault; stop at the first one."""
        return next(self._faults(value, schema), None) is None

    def is_type(self, value: JsonValue, kind: str) -> bool:
        """Return whether a value has a type of JSON Schema: 1.0 is an integer, and true is not."""
        return bool(Draft202012Validator.TYPE_CHECKER.is_type(value, kind))

    def go_on(self) -> None:
        """Check that there is time for another step; called before each one.

        Raises:
            TakesTooLong: the comparison has used `MAX_SECONDS`.
        """
        if thread_time() > self._deadline:
            raise TakesTooLong

    def _faults(self, value: JsonValue, schema: Schema | bool) -> Faults:
        self.go_on()
        if schema is False:
            yield ValidationError(f"False schema does not allow {quoted(value)}")
        elif schema is not True:
            for keyword, argument in schema.items():
                if keyword in KEYWORDS:
                    yield from KEYWORDS[keyword](self, argument, value, schema)


# ------------------------------------------------------------------------------------------------- messages


def quoted(value: JsonValue) -> str:
    """Return the beginning of `repr(value)`, without building the rest."""
    text = ""
    for piece in _pieces(value):
        text += piece
        if len(text) > MAX_QUOTED:
            return f"{text[:MAX_QUOTED]} …"
    return text


def _pieces(value: JsonValue) -> Iterator[str]:
    if isinstance(value, dict):
        yield "{"
        for index, (name, part) in enumerate(value.items()):
            yield f"{', ' if index else ''}{quoted(name)}: "
            yield from _pieces(part)
        yield "}"
    elif isinstance(value, list | tuple):
        yield "["
        for index, part in enumerate(value):
            yield ", " if index else ""
            yield from _pieces(part)
        yield "]"
    else:
        yield repr(value[: MAX_QUOTED + 1] if isinstance(value, str) else value)


def _listed(values: Iterable[JsonValue]) -> str:
    return ", ".join(map(quoted, islice(values, MAX_LISTED)))


# ------------------------------------------------------------------------------------------------- any value


def _type(comparison: Comparison, kinds: str | list[str], value: JsonValue, schema: Schema) -> Faults:
    listed = [kinds] if isinstance(kinds, str) else kinds
    if not any(comparison.is_type(value, kind) for kind in listed):
        yield ValidationError(f"{quoted(value)} is not of type {', '.join(map(repr, listed))}")


def _enum(comparison: Comparison, allowed: list[Any], value: JsonValue, schema: Schema) -> Faults:
    if not any(_same(value, one) for one in allowed):
        yield ValidationError(f"{quoted(value)} is not one of {quoted(allowed)}")


def _const(comparison: Comparison, wanted: JsonValue, value: JsonValue, schema: Schema) -> Faults:
    if not _same(value, wanted):
        yield ValidationError(f"{quoted(wanted)} was expected")


def _same(one: JsonValue, other: JsonValue) -> bool:
    # To Python, but not to JSON, 1 is True.
    return bool(one == other) and digest(one) == digest(other)


def _ref(comparison: Comparison, reference: str, value: JsonValue, schema: Schema) -> Faults:
    yield from comparison.descend(value, comparison.resolve(reference))


def _any_of(comparison: Comparison, parts: list[Schema | bool], value: JsonValue, schema: Schema) -> Faults:
    if not any(comparison.fits(value, part) for part in parts):
        yield ValidationError(f"{quoted(value)} is not valid under any of the given schemas")


def _one_of(comparison: Comparison, parts: list[Schema | bool], value: JsonValue, schema: Schema) -> Faults:
    fitting = list(islice((part for part in parts if comparison.fits(value, part)), 2))
    if not fitting:
        yield ValidationError(f"{quoted(value)} is not valid under any of the given schemas")
    elif len(fitting) > 1:
        yield ValidationError(f"{quoted(value)} is valid under each of {_listed(fitting)}")


def _not(comparison: Comparison, part: Schema | bool, value: JsonValue, schema: Schema) -> Faults:
    if comparison.fits(value, part):
        yield ValidationError(f"{quoted(value)} should not be valid under {quoted(part)}")


def _if(comparison: Comparison, condition: Schema | bool, value: JsonValue, schema: Schema) -> Faults:
    yield from comparison.descend(value, schema.get("then" if comparison.fits(value, condition) else "else", True))


def _size(kind: str, *, least: bool, otherwise: str) -> Callable[..., Faults]:
    """Return the function of a keyword for the length of values of one kind: a minimum if `least`, or a maximum."""

    def check(comparison: Comparison, bound: int, value: JsonValue, schema: Schema) -> Faults:
        if comparison.is_type(value, kind) and (len(value) < bound if least else len(value) > bound):
            brief = (1, "should be non-empty") if least else (0, "is expected to be empty")
            yield ValidationError(f"{quoted(value)} {brief[1] if bound == brief[0] else otherwise}")

    return check


# ------------------------------------------------------------------------------------------------- numbers and texts


def _multiple_of(comparison: Comparison, factor: float, value: JsonValue, schema: Schema) -> Faults:
    """Divide by the decimal digits as written: as binary fractions, 19.99 is not a multiple of 0.01."""
    if comparison.is_type(value, "number") and Fraction(repr(value)) % Fraction(repr(factor)):
        yield ValidationError(f"{value!r} is not a multiple of {factor!r}")


@lru_cache(maxsize=256)
def matcher(pattern: str) -> tuple[jsonschema_rs.Validator, int]:
    """Return a regular expression of ECMA 262, compiled for matching in linear time, and a bound of its size in bytes.

    Raises:
        ValueError: it is invalid, too large, or has look-around or back-references.
    """
    for size in PATTERN_SIZES:
        with suppress(ValueError):
            options = jsonschema_rs.RegexOptions(size_limit=size)
            return jsonschema_rs.Draft202012Validator({"pattern": pattern}, pattern_options=options), size
    raise ValueError(pattern)


def _matches(pattern: str, text: str) -> bool:
    """Return whether the text contains a match of the pattern.

    Raises:
        TakesTooLong: the search, which nothing can interrupt, might take more than `MAX_SECONDS`.
    """
    expression, size = matcher(pattern)
    if size * len(text) > MAX_MATCHING:
        raise TakesTooLong
    return _accepts(expression, text)


def _accepts(validator: jsonschema_rs.Validator, text: str) -> bool:
    try:
        return validator.is_valid(text)
    except UnicodeEncodeError:  # a lone surrogate
        return False


def _pattern(comparison: Comparison, pattern: str, value: JsonValue, schema: Schema) -> Faults:
    if comparison.is_type(value, "string") and not _matches(pattern, value):
        yield ValidationError(f"{quoted(value)} does not match {quoted(pattern)}")


@lru_cache(maxsize=128)
def _format_checker(name: str) -> jsonschema_rs.Validator:
    return jsonschema_rs.Draft202012Validator({"format": name}, validate_formats=True)


def _format(comparison: Comparison, name: str, value: JsonValue, schema: Schema) -> Faults:
    if not comparison.is_type(value, "string"):
        return
    if len(value) > MAX_FORMATTED:
        yield ValidationError(
            f"{quoted(value)} is longer than {MAX_FORMATTED:,} characters and is not a {quoted(name)}"
        )
        return
    if not _accepts(_format_checker(name), value):
        yield ValidationError(f"{quoted(value)} is not a {quoted(name)}")


# ------------------------------------------------------------------------------------------------- arrays


def _items(comparison: Comparison, part: Schema | bool, value: JsonValue, schema: Schema) -> Faults:
    if not comparison.is_type(value, "array"):
        return
    first = len(schema.get("prefixItems", ()))
    if part is False and len(value) > first:
        noun = "item" if first == 1 else "items"
        rest = quoted(value[first : first + MAX_QUOTED])
        yield ValidationError(f"Expected at most {first} {noun} but found {len(value) - first} extra: {rest}")
    elif part is not True:
        for index in range(first, len(value)):
            yield from comparison.descend(value[index], part, path=index)


def _contains(comparison: Comparison, part: Schema | bool, value: JsonValue, schema: Schema) -> Faults:
    if not comparison.is_type(value, "array"):
        return
    least, most = schema.get("minContains", 1), schema.get("maxContains", len(value))
    matches = 0
    for item in value:
        matches += comparison.fits(item, part)
        if matches > most:
            yield ValidationError(f"Too many items match the given schema (expected at most {most})")
            return
    if matches < least and not matches:
        yield ValidationError(f"{quoted(value)} does not contain items matching the given schema")
    elif matches < least:
        yield ValidationError(
            f"Too few items match the given schema (expected at least {least} but only {matches} matched)"
        )


def _unique_items(comparison: Comparison, unique: bool, value: JsonValue, schema: Schema) -> Faults:
    if not unique or not comparison.is_type(value, "array"):
        return
    seen: set[Any] = set()
    for item in value:
        comparison.go_on()
        seen.add(_identity(item))
    if len(seen) < len(value):
        yield ValidationError(f"{quoted(value)} has non-unique elements")


def _identity(value: JsonValue) -> Any:
    """Return a small key that is equal for equal values."""
    if isinstance(value, list | dict):
        return bytes.fromhex(digest(value))
    return (value,) if isinstance(value, bool) else stable(value)


# ------------------------------------------------------------------------------------------------- objects


def _pattern_properties(
    comparison: Comparison, patterns: dict[str, Schema | bool], value: JsonValue, schema: Schema
) -> Faults:
    if comparison.is_type(value, "object"):
        for pattern, part in patterns.items():
            for name in _matching(comparison, [pattern], value):
                yield from comparison.descend(value[name], part, path=name)


def _additional_properties(comparison: Comparison, part: Schema | bool, value: JsonValue, schema: Schema) -> Faults:
    if part is True or not comparison.is_type(value, "object"):
        return
    others = [name for name in value if name not in schema.get("properties", {})]
    known = set(_matching(comparison, schema.get("patternProperties", {}), others))
    extras = [name for name in others if name not in known]
    if part is not False:
        for name in extras:
            yield from comparison.descend(value[name], part, path=name)
    elif extras:
        verb = "was" if len(extras) == 1 else "were"
        yield ValidationError(f"Additional properties are not allowed ({_listed(sorted(extras))} {verb} unexpected)")


def _matching(comparison: Comparison, patterns: Iterable[str], names: Iterable[str]) -> Iterator[str]:
    """Yield the names that match one of the patterns."""
    for pattern in patterns:
        for name in names:
            comparison.go_on()
            if _matches(pattern, name):
                yield name


# ------------------------------------------------------------------------------------------------- unevaluated


def _unevaluated_items(comparison: Comparison, part: Schema | bool, value: JsonValue, schema: Schema) -> Faults:
    if comparison.is_type(value, "array"):
        known = set(_evaluated(comparison, value, schema))
        extras = [item for index, item in enumerate(value) if index not in known]
        if extras:
            verb = "was" if len(extras) == 1 else "were"
            yield ValidationError(f"Unevaluated items are not allowed ({_listed(extras)} {verb} unexpected)")


def _unevaluated_properties(comparison: Comparison, part: Schema | bool, value: JsonValue, schema: Schema) -> Faults:
    if comparison.is_type(value, "object"):
        known = set(_evaluated(comparison, value, schema))
        extras = sorted(name for name in value if name not in known)
        if extras:
            verb = "was" if len(extras) == 1 else "were"
            if part is False:
                fault = f"allowed ({_listed(extras)} {verb} unexpected)"
            else:
                fault = f"valid under the given schema ({_listed(extras)} {verb} unevaluated and invalid)"
            yield ValidationError(f"Unevaluated properties are not {fault}")


def _evaluated(comparison: Comparison, value: JsonValue, schema: Schema | bool) -> Iterator[str | int]:
    """Yield the names in an object, or indexes in an array, of the parts that a schema covers and accepts."""
    if isinstance(schema, bool):
        return
    if isinstance(value, dict):
        yield from schema.get("properties", {})
        yield from _matching(comparison, schema.get("patternProperties", {}), value)
        keywords = ("additionalProperties", "unevaluatedProperties")
    else:
        yield from range(len(value) if "items" in schema else len(schema.get("prefixItems", ())))
        keywords = ("contains", "unevaluatedItems")
    for keyword in keywords:
        if keyword in schema:
            places = value.items() if isinstance(value, dict) else enumerate(value)
            yield from (place for place, part in places if comparison.fits(part, schema[keyword]))
    for applied in _applied(comparison, value, schema):
        yield from _evaluated(comparison, value, applied)


def _applied(comparison: Comparison, value: JsonValue, schema: Schema) -> Iterator[Schema | bool]:
    """Yield the schemas inside one that apply to the same value, and that the value matches."""
    yield from (comparison.resolve(schema[name]) for name in ("$ref", "$dynamicRef") if name in schema)
    for keyword in ("allOf", "anyOf", "oneOf"):
        yield from (part for part in schema.get(keyword, ()) if comparison.fits(value, part))
    if "if" in schema:
        fits = comparison.fits(value, schema["if"])
        yield from (schema["if"], schema.get("then", True)) if fits else (schema.get("else", True),)
    if isinstance(value, dict):
        yield from (part for name, part in schema.get("dependentSchemas", {}).items() if name in value)


KEYWORDS: dict[str, Callable[..., Faults]] = {
    **{
        keyword: Draft202012Validator.VALIDATORS[keyword]
        for keyword in "allOf dependentRequired dependentSchemas exclusiveMaximum exclusiveMinimum maximum minimum "
        "prefixItems properties propertyNames required".split()
    },
    "$dynamicRef": _ref,
    "$ref": _ref,
    "additionalProperties": _additional_properties,
    "anyOf": _any_of,
    "const": _const,
    "contains": _contains,
    "enum": _enum,
    "format": _format,
    "if": _if,
    "items": _items,
    "maxItems": _size("array", least=False, otherwise="is too long"),
    "maxLength": _size("string", least=False, otherwise="is too long"),
    "maxProperties": _size("object", least=False, otherwise="has too many properties"),
    "minItems": _size("array", least=True, otherwise="is too short"),
    "minLength": _size("string", least=True, otherwise="is too short"),
    "minProperties": _size("object", least=True, otherwise="does not have enough properties"),
    "multipleOf": _multiple_of,
    "not": _not,
    "oneOf": _one_of,
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "type": _type,
    "unevaluatedItems": _unevaluated_items,
    "unevaluatedProperties": _unevaluated_properties,
    "uniqueItems": _unique_items,
}
