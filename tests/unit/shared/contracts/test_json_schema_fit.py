"""Misfits between two schemas: every reported one is certain."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.contracts.json_schema import Pair, misfits, violations
from shared.definitions.fit import ANSWER

TEXT: dict[str, Any] = {"type": "string"}
WHOLE: dict[str, Any] = {"type": "integer"}
NEITHER = "no value is allowed by both schemas"


def misfit(comes: Any, taken: Any, element_of: str | None = None) -> str | None:
    """Return the reason why no value can satisfy both schemas."""
    (fault,) = misfits([Pair(comes, taken, element_of)])
    return fault


def of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": sorted(properties)}


def closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": sorted(properties), "additionalProperties": False}


@pytest.mark.parametrize(
    ("comes", "taken", "fault"),
    [
        (TEXT, {"type": "object"}, "$: the value is a string, but an object is required"),
        ({"type": ["null", "string"]}, {"type": "array"}, "$: the value is null or a string, but an array is required"),
        (ANSWER, TEXT, "$: the value is an object, but a string is required"),
        (ANSWER, closed(text=TEXT), "$: 'text' is required, but never given"),
        ({**closed(a=TEXT), "additionalProperties": True}, closed(), "$: 'a' is always given, but not allowed"),
        (
            closed(a=closed(b=TEXT)),
            closed(a=closed(b={"type": "integer"})),
            "$.a.b: the value is a string, but a number is required",
        ),
        ({"enum": ["a", "b"]}, {"enum": ["c"]}, "$: the value is 'a' or 'b', which is not accepted"),
        ({"const": 1}, {"minimum": 2}, "$: the value is 1, which is not accepted"),
        ({}, False, "$: no value is accepted"),
    ],
)
def test_schemas_without_a_common_value_misfit(comes: Any, taken: Any, fault: str) -> None:
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
        (closed(a={"const": 1}), {**closed(a={"$ref": "#/$defs/whole"}), "$defs": {"whole": WHOLE}}),
        ({"$ref": "#/$defs/a", "$defs": {"a": TEXT}}, {"allOf": [{"maxLength": 5}]}),
        ({"pattern": "^a"}, {"pattern": "^b"}),
        ({"$ref": "#"}, {"allOf": [TEXT]}),
        ({"properties": {"a": TEXT}, "required": ["a"]}, {"properties": {"a": {"type": "null"}}}),
    ],
)
def test_schemas_that_may_share_a_value_fit(comes: Any, taken: Any) -> None:
    assert misfit(comes, taken) is None


LIST = {"properties": {"a/b c": {"items": {"$ref": "#/$defs/one"}}}, "$defs": {"one": of(a=TEXT)}}


@pytest.mark.parametrize(
    ("comes", "taken", "path"),
    [
        ({"$ref": "#/$defs/a", "$defs": {"a": TEXT}}, WHOLE, "$"),
        ({"allOf": [TEXT]}, WHOLE, "$"),
        (WHOLE, {"not": {"type": "number"}}, "$"),
        ({**WHOLE, "minimum": 5}, {"maximum": 4, "type": "integer"}, "$"),
        ({**TEXT, "minLength": 5}, {"type": "string", "maxLength": 4}, "$"),
        ({"type": "array", "items": TEXT, "minItems": 1}, {"type": "array", "items": WHOLE}, "$"),
        (closed(), {"type": "object", "minProperties": 1}, "$"),
        (of(a={"anyOf": [TEXT, {"type": "null"}]}), of(a=WHOLE), "$.a"),
        ({**of(a=of(b={"$ref": "#/$defs/b"})), "$defs": {"b": TEXT}}, of(a=of(b=WHOLE)), "$.a.b"),
        ({"$ref": "#/$defs/a", "$defs": {"a": closed(a=TEXT)}}, of(b=TEXT), "$.b"),
        ({"oneOf": [of(kind={"const": "a"}), of(kind={"const": "b"})]}, of(kind={"const": "c"}), "$.kind"),
    ],
)
def test_exclusion_by_several_keywords_is_found_with_its_path(comes: Any, taken: Any, path: str) -> None:
    assert Pair(comes, taken).fault() is None
    assert misfit(comes, taken) == f"{path}: {NEITHER}"


@pytest.mark.parametrize(("taken", "fault"), [(of(a=WHOLE), f"$.a: {NEITHER}"), (of(a=TEXT), None)])
def test_element_schema_is_resolved_through_references(taken: Any, fault: str | None) -> None:
    assert misfit(LIST, taken, element_of="a/b c") == fault


def test_pair_that_takes_too_long_counts_as_fitting() -> None:
    """The library takes a gigabyte and several seconds for this pair."""
    choices = [{"oneOf": [{"required": [f"{n}a"]}, {"required": [f"{n}b"]}]} for n in range(40)]
    obvious = Pair({"allOf": [TEXT]}, WHOLE)
    assert misfits([obvious, Pair({"allOf": choices}, {"type": "object"}), obvious]) == [f"$: {NEITHER}", None, None]


def test_process_that_compares_schemas_gets_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, str]] = []
    run = subprocess.run

    def note(*arguments: Any, env: dict[str, str], **options: Any) -> Any:
        given.append(env)
        return run(*arguments, env=env, **options)

    monkeypatch.setenv("MINION_API_KEY", "t0p-s3cret-value")
    monkeypatch.setattr(subprocess, "run", note)
    assert misfit({"allOf": [TEXT]}, WHOLE) == f"$: {NEITHER}"
    assert [{*names} - {"LD_LIBRARY_PATH"} for names in given] == [set()]


@pytest.mark.parametrize("fault", [OSError("no process"), ValueError("embedded null byte")])
def test_pair_fits_if_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise fault

    monkeypatch.setattr(subprocess, "run", refuse)
    assert misfit({"allOf": [TEXT]}, WHOLE) is None


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
def test_common_value_disproves_misfit(value: Any, comes: Any, taken: Any) -> None:
    if isinstance(comes, dict) and isinstance(taken, dict) and not violations(comes, value):
        assert violations(taken, value) or Pair(comes, taken).fault() is None
