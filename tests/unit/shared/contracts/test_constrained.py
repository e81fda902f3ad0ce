"""Schemas to which a model can be constrained."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic import transform_schema

from minions.testing import _grammar_fault
from shared.contracts.constrained import can_be_constrained, unconstrainable

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
