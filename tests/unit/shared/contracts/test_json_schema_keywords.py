"""Our keywords decide as those of `jsonschema` do, which are slower and keep more in memory."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema_rs.canonical import CanonicalizationError

from shared.contracts.json_schema import violations
from shared.contracts.json_schema.satisfiability import canonical, places

NAMES = st.sampled_from(["a", "ab", "b", "c"])
SIZES = st.integers(0, 3)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.sampled_from([0.0, 1.0, 1.5, "", "a", "ab"]),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(NAMES, parts, max_size=3),
    max_leaves=6,
)
KINDS = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])
PATTERNS = st.sampled_from(["^a", "b$", "c"])


def keywords(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Generate schemas of one to four keywords whose subschemas are `parts`."""
    several, by_name = st.lists(parts, min_size=1, max_size=3), st.dictionaries(NAMES, parts, max_size=2)
    each: dict[str, st.SearchStrategy[Any]] = {
        "type": KINDS | st.lists(KINDS, min_size=1, max_size=2, unique=True),
        "enum": st.lists(VALUES, min_size=1, max_size=3),
        "const": VALUES,
        "$ref": st.sampled_from(["#/$defs/one", "#/$defs/other", "#named"]),
        "not": parts, "if": parts, "then": parts, "else": parts,
        "items": parts, "contains": parts, "additionalProperties": parts, "propertyNames": parts,
        "unevaluatedItems": parts, "unevaluatedProperties": parts,
        "properties": by_name, "dependentSchemas": by_name,
        "patternProperties": st.dictionaries(PATTERNS, parts, min_size=1, max_size=2),
        "allOf": several, "anyOf": several, "oneOf": several, "prefixItems": several,
        "required": st.lists(NAMES, max_size=2, unique=True),
        "dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, max_size=2, unique=True), max_size=2),
        "minimum": st.integers(-2, 3), "maximum": st.integers(-2, 3), "multipleOf": st.sampled_from([1, 2, 0.5]),
        "exclusiveMinimum": st.integers(-2, 3), "exclusiveMaximum": st.integers(-2, 3),
        "minLength": SIZES, "maxLength": SIZES, "minItems": SIZES, "maxItems": SIZES,
        "minProperties": SIZES, "maxProperties": SIZES, "minContains": SIZES, "maxContains": SIZES,
        "uniqueItems": st.booleans(), "pattern": PATTERNS,
    }  # fmt: skip
    chosen = st.lists(st.sampled_from(sorted(each)), min_size=1, max_size=4, unique=True)
    return chosen.flatmap(lambda names: st.fixed_dictionaries({name: each[name] for name in names}))


LEAVES = st.booleans() | st.fixed_dictionaries({"type": KINDS}) | st.fixed_dictionaries({"const": VALUES})
SCHEMAS = st.recursive(LEAVES, keywords, max_leaves=6)
DEFINITIONS = st.fixed_dictionaries(
    {"one": LEAVES, "other": LEAVES, "named": st.just({"$anchor": "named", "minimum": 1})}
)


@settings(max_examples=60)
@given(keywords(SCHEMAS), DEFINITIONS, st.lists(VALUES, min_size=1, max_size=5))
def test_keywords_agree_with_jsonschema(schema: dict[str, Any], definitions: Any, values: list[Any]) -> None:
    schema = {**schema, "$defs": definitions}
    for value in values:
        assert (violations(schema, value) == []) == Draft202012Validator(schema).is_valid(value)


@settings(max_examples=60)
@given(keywords(SCHEMAS), keywords(SCHEMAS), DEFINITIONS, st.lists(VALUES, min_size=1, max_size=5))
def test_common_value_disproves_impossibility(one: Any, other: Any, definitions: Any, values: list[Any]) -> None:
    pair = [{**schema, "$defs": definitions} for schema in (one, other)]
    if any(violations(pair[0], value) == violations(pair[1], value) == [] for value in values):
        with suppress(CanonicalizationError):
            assert [*places(canonical(pair[0]), canonical(pair[1]))] == []
