"""What is certainly wrong between two schemas is found, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.json_schema import violations
from shared.schema_fit import ANSWER, misfit

TEXT: dict[str, Any] = {"type": "string"}


def closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": sorted(properties), "additionalProperties": False}


@pytest.mark.parametrize(
    ("comes", "taken", "fault"),
    [
        (TEXT, {"type": "object"}, "$: string comes, and object is taken"),
        ({"type": ["null", "string"]}, {"type": "array"}, "$: null or string comes, and array is taken"),
        (ANSWER, TEXT, "$: object comes, and string is taken"),
        (ANSWER, closed(text=TEXT), "$: 'text' is needed, and never comes"),
        ({**closed(a=TEXT), "additionalProperties": True}, closed(), "$: 'a' always comes, and is not taken"),
        (closed(a=closed(b=TEXT)), closed(a=closed(b={"type": "integer"})), "$.a.b: string comes, and number is taken"),
        ({"enum": ["a", "b"]}, {"enum": ["c"]}, "$: 'a', 'b' comes, which is not taken"),
        ({"const": 1}, {"minimum": 2}, "$: 1 comes, which is not taken"),
        ({}, False, "$: nothing is taken"),
    ],
)
def test_what_can_never_fit(comes: Any, taken: Any, fault: str) -> None:
    assert misfit(comes, taken) == fault


@pytest.mark.parametrize(
    ("comes", "taken"),
    [
        (None, TEXT),
        (TEXT, None),
        ({}, TEXT),
        (True, TEXT),
        ({"type": "integer"}, {"type": "number"}),
        ({"type": "object", "properties": {"a": TEXT}}, closed(b=TEXT)),
        ({"type": "object", "properties": {"a": TEXT}}, {"type": "object", "properties": {"a": {"type": "null"}}}),
        ({"enum": ["a", "b"]}, {"enum": ["b"]}),
        ({**closed(a=TEXT), "patternProperties": {"^b": {}}}, {"type": "object", "required": ["b1"]}),
        ({"type": "array", "items": TEXT}, {"type": "array", "items": {"type": "null"}}),
        ({"properties": {"a": TEXT}, "required": ["a"]}, {"properties": {"a": {"type": "null"}}}),
    ],
)
def test_what_may_fit(comes: Any, taken: Any) -> None:
    assert misfit(comes, taken) is None


NAMES = st.sampled_from(["a", "b"])
VALUES = st.recursive(
    st.sampled_from([None, True, 1, 1.5, "x", ""]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=5,
)
SCHEMAS = st.recursive(
    st.sampled_from([{}, True, TEXT, {"type": "integer"}, {"type": ["null", "array"]}, {"enum": [1, "x"]}]),
    lambda inner: st.fixed_dictionaries(
        {"type": st.just("object"), "properties": st.dictionaries(NAMES, inner, max_size=2)},
        optional={"required": st.lists(NAMES, unique=True, max_size=2), "additionalProperties": st.just(False)},
    ),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(VALUES, SCHEMAS, SCHEMAS)
def test_a_value_of_both_disproves_a_misfit(value: Any, comes: Any, taken: Any) -> None:
    if isinstance(comes, dict) and isinstance(taken, dict) and not violations(comes, value):
        assert violations(taken, value) or misfit(comes, taken) is None
