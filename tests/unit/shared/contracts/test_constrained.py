"""Schemas to which a model can be constrained."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic import transform_schema
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from minions.testing import _grammar_fault
from shared.contracts.constrained import BOUNDS, can_be_constrained, unconstrainable

TEXT = {"type": "string"}


def objects(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


@pytest.mark.parametrize(
    "schema",
    [
        objects(a=TEXT),
        objects(a={"type": "integer", "minimum": 1}, b={"type": "array", "items": TEXT, "maxItems": 3}),
        {"type": "object", "properties": {"a": TEXT}, "description": "Open, and optional."},
        objects(a={"enum": ["x", 1, None]}, b={"const": True}, c={"type": "string", "format": "uuid", "pattern": "^a"}),
        objects(a={"anyOf": [TEXT, {"type": "null"}]}, b={"oneOf": [TEXT, objects(c=TEXT)]}),
        {**objects(a={"$ref": "#/$defs/One"}, b={"$ref": "#/$defs/One"}), "$defs": {"One": objects(x=TEXT)}},
    ],
)
def test_schema_can_constrain(schema: dict[str, Any]) -> None:
    assert unconstrainable(schema) is None
    assert _grammar_fault(transform_schema(schema)) is None


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({}, '`type` must be "object"'),
        ({"type": "array", "items": TEXT}, '`type` must be "object"'),
        ({"type": "object"}, "without `properties`"),
        ({**objects(a=TEXT), "additionalProperties": TEXT}, "`additionalProperties` must be false"),
        (objects(a={"type": "object", "additionalProperties": {"type": "number"}}), "at /properties/a"),
        (objects(a={"type": ["string", "null"]}), "`type` at /properties/a must be one type"),
        (objects(a={}), "`type` at /properties/a must be one type"),
        (objects(a=True), "`true` or `false` at /properties/a"),
        (objects(a={"type": "array"}), "`items` at /properties/a is missing"),
        (objects(a={"enum": [[1]]}), "must have only texts"),
        (objects(a={"allOf": [TEXT]}), "`allOf` at /properties/a"),
        ({**objects(a=TEXT), "required": ["b"]}, "names 'b'"),
        ({**objects(a={"$ref": "#/$defs/A"}), "$defs": {"A": objects(a={"$ref": "#/$defs/A"})}}, "contains itself"),
        (objects(a={"$ref": "#/properties/b"}), "must name one of its `$defs`"),
        ({"type": "object", "properties": {f"p{n}": TEXT for n in range(25)}}, "25 optional properties"),
        (objects(**{f"p{n}": {"anyOf": [TEXT]} for n in range(17)}), "17 choices"),
    ],
)
def test_schema_cannot_constrain(schema: dict[str, Any], why: str) -> None:
    assert why in str(unconstrainable(schema))


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (objects(a={"enum": []}), "`enum` at /properties/a must have a value"),
        ({**objects(a=TEXT), "$defs": {"any": True}}, "`true` or `false` at /$defs/any"),
        ({**objects(a=TEXT), "$defs": {"any": {}}}, "`type` at /$defs/any must be one type"),
        ({"type": "object", "$ref": "#/$defs/A", "$defs": {"A": objects(a=TEXT)}}, "`$ref` at its top level"),
        ({**objects(a=TEXT), "anyOf": [objects(a=TEXT)]}, "`anyOf` at its top level"),
        ({**objects(a=TEXT), "enum": ["a"]}, "`enum` at its top level"),
        (objects(a={**objects(x=TEXT), "anyOf": [objects(y=TEXT)]}), "`anyOf` at /properties/a must have no"),
        (objects(a={"anyOf": [TEXT], "oneOf": [TEXT]}), "must have no `oneOf` beside it"),
        ({**objects(a={"$ref": "#/$defs/A", "type": "null"}), "$defs": {"A": TEXT}}, "must have no `type` beside it"),
        (objects(a={"$ref": "A"}), "must name one of its `$defs`"),
    ],
)
def test_schema_that_would_be_sent_wrongly_cannot_constrain(schema: dict[str, Any], why: str) -> None:
    assert why in str(unconstrainable(schema))


def test_definitions_that_refer_to_each_other_take_linear_time() -> None:
    levels = {f"d{n}": objects(**{name: {"$ref": f"#/$defs/d{n + 1}"} for name in "xyz"}) for n in range(60)}
    schema = {**objects(a={"$ref": "#/$defs/d0"}), "$defs": {**levels, "d60": TEXT}}
    assert unconstrainable(schema) is None


def test_long_chain_of_definitions_cannot_constrain() -> None:
    chain = {f"d{n}": objects(x={"$ref": f"#/$defs/d{n + 1}"}) for n in range(2000)}
    schema = {**objects(a={"$ref": "#/$defs/d0"}), "$defs": {**chain, "d2000": TEXT}}
    assert "too deeply" in str(unconstrainable(schema))


NOTES = st.fixed_dictionaries({}, optional={"description": st.text(max_size=5), "default": st.integers()})
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from("ab"))
LEAVES = st.one_of(
    st.sampled_from([{"type": kind} for kind in ("string", "integer", "number", "boolean", "null", "weird")]),
    st.builds(lambda low: {"type": "integer", "minimum": low, "maximum": 3}, st.integers(-3, 3)),
    st.builds(lambda low: {"type": "string", "minLength": low, "format": "x"}, st.integers(0, 2)),
    st.builds(lambda values: {"enum": values}, st.lists(PLAIN, max_size=3)),
    st.builds(lambda value: {"const": value}, PLAIN),
    st.sampled_from([{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}, {"type": ["string", "null"]}, True, {}]),
)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    fields = st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    closed = st.fixed_dictionaries(
        {"type": st.just("object"), "properties": fields},
        optional={
            "required": st.lists(st.sampled_from("abc"), max_size=2, unique=True),
            "additionalProperties": st.booleans(),
            "minProperties": st.integers(0, 1),
            "anyOf": st.lists(inner, min_size=1, max_size=2),
        },
    )
    items = st.builds(lambda each, most: {"type": "array", "items": each, "minItems": most}, inner, st.integers(0, 2))
    choices = st.builds(
        lambda name, each: {name: each}, st.sampled_from(["anyOf", "oneOf"]), st.lists(inner, min_size=1)
    )
    return st.builds(lambda schema, notes: {**notes, **schema}, st.one_of(closed, items, choices), NOTES)


SCHEMAS = st.builds(
    lambda fields, schema, one, other: {**schema, "properties": fields, "$defs": {"A": one, "B": other}},
    st.dictionaries(st.sampled_from("abc"), st.recursive(LEAVES, nested, max_leaves=6), max_size=3),
    st.one_of(st.just({"type": "object"}), st.just({"type": "object", "additionalProperties": False})),
    st.recursive(LEAVES, nested, max_leaves=3),
    LEAVES,
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)),
    max_leaves=5,
)


@given(SCHEMAS, st.lists(VALUES, min_size=5, max_size=5))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_answer_to_a_constraint_matches_the_schema(schema: dict[str, Any], values: list[Any]) -> None:
    assume(unconstrainable(schema) is None)
    sent = transform_schema(schema)
    assert _grammar_fault(sent) is None
    unbounded = Draft202012Validator(without_bounds(schema))
    for value in values:
        if Draft202012Validator(sent).is_valid(value):
            assert unbounded.is_valid(value)


def without_bounds(schema: Any) -> Any:
    """Return a schema without the limits that are checked afterwards."""
    match schema:
        case dict():
            kept = {name: value for name, value in schema.items() if name not in BOUNDS}
            if "oneOf" in kept:
                kept["anyOf"] = kept.pop("oneOf")
            return {name: without_bounds(value) for name, value in kept.items()}
        case list():
            return [without_bounds(each) for each in schema]
    return schema


def test_models_that_can_be_constrained() -> None:
    able = ["claude-opus-4-5", "claude-sonnet-4-5-20250929", "claude-haiku-4-5", "claude-sonnet-5", "claude-opus-5-5"]
    unable = [
        "claude-opus-4-1",
        "claude-sonnet-4-20250514",
        "claude-3-5-sonnet-latest",
        "gpt-5",
        "auto",
        "claude-new-9",
    ]
    assert [model for model in (*able, *unable) if can_be_constrained(model)] == able
