"""Contracts of agents as tools."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from minions.errors import InvalidInput, UnknownAgent
from orchestrator.mcp.agent_tools import AGENT_NAME, HANDLE, agent_of, input_of, tool_of
from shared.contracts.documents import NAME

TEXT = {"type": "string"}
TAKEN = frozenset({"why"})
LIST = {"type": "array", "items": {"$ref": "#/$defs/part"}, "$defs": {"part": {"type": "string"}}}
OBJECT = {"type": "object", "properties": {"a": {"$ref": "#/$defs/part"}}, "$defs": {"part": {"type": "string"}}}


def contract(**more: Any) -> dict[str, Any]:
    plain = {"name": "Acts", "description": "Acts.", "input_schema": OBJECT, "output_schema": None, "effect": "unsafe"}
    return {**plain, **more}


def tool(has_tasks: bool = True, any_json: bool = True, **more: Any) -> Any:
    return tool_of(contract(**more), taken=TAKEN, has_tasks=has_tasks, any_json=any_json)


def test_agent_called_like_a_tool_of_ours_is_renamed() -> None:
    renamed = {"why": "agent_why", "agent_why": "agent_agent_why", "agent_other": "agent_other", "Acts": "Acts"}
    for agent, name in renamed.items():
        assert tool(name=agent).name == name
        assert agent_of(name, taken=TAKEN) == agent


@pytest.mark.parametrize("name", ["why", "", ".", "..", "a/b", "../Acts", "Acts?x", "x" * 101, "Nö"])
def test_name_that_no_agent_can_have_is_unknown(name: str) -> None:
    with pytest.raises(UnknownAgent):
        agent_of(name, taken=TAKEN)


def test_names_are_those_of_definitions() -> None:
    assert f"^{AGENT_NAME.pattern}$" == NAME


def test_input_that_is_no_object_is_one_argument() -> None:
    found = contract(input_schema=LIST)
    assert tool(input_schema=LIST).input_schema == {
        "type": "object",
        "properties": {"input": {"type": "array", "items": {"$ref": "#/$defs/part"}}},
        "required": ["input"],
        "$defs": LIST["$defs"],
    }
    assert input_of(found, {"input": ["a"]}) == ["a"]
    for wrong in ({}, {"a": 1}, {"input": [], "more": 1}):
        with pytest.raises(InvalidInput):
            input_of(found, wrong)


def test_object_without_its_type_is_one() -> None:
    schema = {"properties": {"a": {"type": "string"}}}
    assert tool(input_schema=schema).input_schema == {**schema, "type": "object"}
    assert input_of(contract(input_schema=schema), {"a": "b"}) == {"a": "b"}


def test_output_schema_allows_the_handle_that_a_client_may_get() -> None:
    assert tool(output_schema=OBJECT).output_schema == OBJECT
    other = tool(output_schema=OBJECT, has_tasks=False).output_schema
    own = {"type": "object", "properties": OBJECT["properties"]}
    assert other == {"type": "object", "$defs": OBJECT["$defs"], "anyOf": [own, HANDLE]}
    assert tool(output_schema=LIST).output_schema == LIST
    assert tool(output_schema=LIST, any_json=False).output_schema is None


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"anyOf": [{"type": "string"}, {"$ref": "#"}]}},
        {"type": "array", "items": {"$ref": "#/$defs/part"}, "$defs": {"part": {"anyOf": [TEXT, {"$ref": "#"}]}}},
        {"$id": "https://a.example", "type": "array", "items": {"$ref": "#/prefixItems/0"}, "prefixItems": [TEXT]},
        {"$anchor": "top", "type": "array", "items": {"anyOf": [{"type": "string"}, {"$ref": "#top"}]}},
    ],
)
def test_references_follow_a_schema_that_moves(schema: dict[str, Any]) -> None:
    within = tool(input_schema=schema).input_schema
    either = tool(output_schema=schema, has_tasks=False).output_schema
    for value in ([], ["a"], ["a", ["b"]], ["a", 5], ["a", ["b", [5]]], 5):
        fits = Draft202012Validator(schema).is_valid(value)
        assert Draft202012Validator(within).is_valid({"input": value}) == fits
        assert Draft202012Validator(either).is_valid(value) == fits


@pytest.mark.parametrize(
    "schema", [{}, {"type": ["object", "null"]}, {"anyOf": [TEXT, {"type": "null"}]}, {"properties": {"a": TEXT}}]
)
def test_output_schema_that_allows_null_is_left_out(schema: dict[str, Any]) -> None:
    assert tool(output_schema=schema).output_schema is None
    assert tool(output_schema={"anyOf": [TEXT, OBJECT]}).output_schema is not None


def test_headers_are_removed_from_schemas() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "x-mcp-header": "A"}, "x-mcp-header": {}}}
    assert tool(input_schema=schema).input_schema["properties"] == {"a": {"type": "string"}, "x-mcp-header": {}}


HINTS = {"pure": (True, True, False), "idempotent": (False, True, False), "unsafe": (False, False, True)}


@pytest.mark.parametrize(("effect", "hints"), HINTS.items())
def test_annotations_follow_from_the_effect(effect: str, hints: tuple[bool, ...]) -> None:
    found = tool(effect=effect).annotations
    assert (found.read_only_hint, found.idempotent_hint, found.destructive_hint) == hints
