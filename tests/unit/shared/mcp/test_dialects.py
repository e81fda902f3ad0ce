"""Schemas of other dialects mean the same in draft 2020-12."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.contracts.json_schema import check_schema
from shared.contracts.json_schema.schemas import check_dialect
from shared.mcp.dialects import translated

DRAFT_07 = "http://json-schema.org/draft-07/schema#"
NO_CHANGE: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {"nullable": {"type": "string"}, "items": {"const": None}, "a": {"$ref": "#/$defs/a"}, "b": True},
    "$defs": {"a": {"enum": [None, "x"], "default": None, "pattern": "^[a-z]+$"}},
    "additionalProperties": False,
}


def of_property(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"p": schema}}


def test_schemas_of_2020_12_are_unchanged() -> None:
    assert translated(NO_CHANGE) == NO_CHANGE


@pytest.mark.parametrize(
    ("listed", "meant"),
    [
        ({"$schema": DRAFT_07, "type": "string"}, {"type": "string"}),
        ({"type": "string", "nullable": True}, {"type": ["string", "null"]}),
        ({"type": "string", "nullable": False}, {"type": "string"}),
        ({"$ref": "#/x", "nullable": True}, {"anyOf": [{"$ref": "#/x"}, {"type": "null"}]}),
        ({"enum": ["a"], "nullable": True}, {"anyOf": [{"enum": ["a"]}, {"type": "null"}]}),
        ({"items": [{"type": "null"}], "additionalItems": False}, {"prefixItems": [{"type": "null"}], "items": False}),
        ({"items": {"nullable": True, "type": "null"}, "additionalItems": False}, {"items": {"type": "null"}}),
        ({"minimum": 0, "exclusiveMinimum": True}, {"exclusiveMinimum": 0}),
        ({"maximum": 9, "exclusiveMaximum": False}, {"maximum": 9}),
        ({"exclusiveMinimum": 3}, {"exclusiveMinimum": 3}),
        ({"properties": None, "required": None, "type": "object"}, {"type": "object"}),
        ({"dependencies": {"a": ["b"]}}, {"dependentRequired": {"a": ["b"]}}),
        ({"dependencies": {"a": {"required": ["b"]}}}, {"dependentSchemas": {"a": {"required": ["b"]}}}),
        # As zod writes an address of e-mail.
        ({"format": "email", "pattern": r"^(?!\.)(?!.*\.\.)[a-z]+@[a-z]+$"}, {"format": "email"}),
        ({"anyOf": [{"pattern": "(?=a)"}], "pattern": "^a$"}, {"anyOf": [{}], "pattern": "^a$"}),
    ],
)
def test_other_dialects_are_translated(listed: dict[str, Any], meant: dict[str, Any]) -> None:
    made = translated(of_property(listed))
    assert made == of_property(meant)
    assert translated(made) == made
    if "#/x" not in str(listed):
        check_schema(made, where="it")
        check_dialect(made, where="it")


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["string", "null", "(?=a)", "^a", DRAFT_07]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "$schema type nullable items additionalItems minimum exclusiveMinimum dependencies pattern properties "
                "anyOf enum default not $defs".split()
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(ANY)
def test_any_value_is_translated_and_left_alone(schema: Any) -> None:
    before = copy.deepcopy(schema)
    translated(schema)
    assert schema == before
