"""Agents as tools: each active agent with an input schema."""

from __future__ import annotations

import re
from typing import Any

from mcp_types import Tool, ToolAnnotations

from minions.errors import InvalidInput, UnknownAgent

Contract = dict[str, Any]

AGENT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")
"""The pattern of definitions; importing them would slow down the start of `minion mcp serve`."""
RENAMED = "agent_"
"""Begins the tool's name of an agent that is called like a tool of ours, or like another agent that was renamed."""
WRAPPED = "input"
"""The argument for the input of an agent whose schema does not describe an object: arguments are always one."""
HEADER = "x-mcp-header"
REFERENCES = ("$ref", "$dynamicRef")
AT_ROOT = ("$schema", "$defs", "definitions")
HANDLE = {
    "type": "object",
    "properties": {"task_id": {"type": "string"}, "state": {"type": "string"}, "why": {"type": "string"}},
    "required": ["task_id", "state"],
}
"""Schema of the answer while a task continues, to a client without the tasks extension."""


def tool_of(contract: Contract, *, taken: frozenset[str], has_tasks: bool, any_json: bool) -> Tool:
    """Return the tool for an agent.

    Args:
        taken: the names of our own tools.
        has_tasks: the client has the tasks extension, so a call returns a task or the output, and never a handle.
        any_json: output schemas may describe any JSON; otherwise only objects, as the protocol had it until 2025-11-25.
    """
    name = contract["name"]
    return Tool(
        name=f"{RENAMED}{name}" if _is_taken(name, taken) else name,
        description=contract["description"] or f"The agent {name}.",
        input_schema=_arguments_schema(contract),
        output_schema=_output_schema(contract["output_schema"], has_tasks=has_tasks, any_json=any_json),
        annotations=_annotations(contract["effect"]),
    )


def agent_of(name: str, *, taken: frozenset[str]) -> str:
    """Return the agent behind a tool's name.

    Raises:
        UnknownAgent: no agent can have the name, or it is that of a tool of ours.
    """
    if not AGENT_NAME.fullmatch(name) or name in taken:
        raise UnknownAgent(f"There is no agent behind the tool {name[:200]!r}.")
    return name.removeprefix(RENAMED) if _is_taken(name, taken) else name


def _is_taken(name: str, taken: frozenset[str]) -> bool:
    while name.startswith(RENAMED):
        name = name.removeprefix(RENAMED)
    return name in taken


def input_of(contract: Contract, arguments: dict[str, Any]) -> Any:
    """Return the agent's input from a call's arguments.

    Raises:
        InvalidInput: an agent whose input is not an object needs it as `input`.
    """
    if _is_object(contract["input_schema"]):
        return arguments
    if arguments.keys() != {WRAPPED}:
        raise InvalidInput(f"The arguments must be an object with one member, {WRAPPED!r}: the input of the agent.")
    return arguments[WRAPPED]


def _arguments_schema(contract: Contract) -> dict[str, Any]:
    schema = _without_headers(contract["input_schema"])
    if _is_object(schema):
        return {**schema, "type": "object"}
    parts, inner = _split(schema, f"/properties/{WRAPPED}")
    return {**parts, "type": "object", "properties": {WRAPPED: inner}, "required": [WRAPPED]}


def _without_headers(schema: Any) -> Any:
    """Return a schema without `x-mcp-header`: clients would send those arguments as headers too, and a server that
    names them must look for the agent of each call to compare both."""
    if isinstance(schema, list):
        return [_without_headers(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: _without_headers(part)
        for name, part in schema.items()
        if name != HEADER or not isinstance(part, str)  # it may be the name of a property
    }


def _split(schema: dict[str, Any], place: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what must stay at the root, because references name it from there, and the rest of a schema, which moves.

    Args:
        place: where the rest moves to, as a JSON pointer: references to it must follow.
    """
    moved = _with_references_to(place, schema)
    parts = {keyword: moved[keyword] for keyword in AT_ROOT if keyword in moved}
    # All references are fragments, so an `$id` is not needed; it would be the base of those below it.
    return parts, {keyword: value for keyword, value in moved.items() if keyword not in (*AT_ROOT, "$id")}


def _with_references_to(place: str, schema: Any) -> Any:
    if isinstance(schema, list):
        return [_with_references_to(place, each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: f"#{place}{part[1:]}" if name in REFERENCES and _is_moved(part) else _with_references_to(place, part)
        for name, part in schema.items()
    }


def _is_moved(reference: Any) -> bool:
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return False
    return reference.split("/")[1:2] not in [[keyword] for keyword in AT_ROOT]


def _output_schema(schema: dict[str, Any] | None, *, has_tasks: bool, any_json: bool) -> dict[str, Any] | None:
    """Return the schema that clients check results against; None if an output that fits the agent's schema may not
    pass their check."""
    if schema is None or _allows_null(schema) or not (any_json or schema.get("type") == "object"):
        return None
    if has_tasks:
        return schema
    parts, own = _split(schema, "/anyOf/0")
    root = {"type": "object"} if own.get("type") == "object" else {}
    return {**parts, **root, "anyOf": [own, HANDLE]}


def _allows_null(schema: Any) -> bool:
    """Return whether a schema may allow null, which clients take for a result without structured content."""
    if not isinstance(schema, dict):
        return True
    if (kinds := schema.get("type")) is not None:
        return "null" in ([kinds] if isinstance(kinds, str) else kinds)
    choices = schema.get("anyOf") or schema.get("oneOf")
    return not choices or any(_allows_null(each) for each in choices)


def _is_object(schema: dict[str, Any]) -> bool:
    return schema.get("type", "object" if "properties" in schema else None) == "object"


def _annotations(effect: str) -> ToolAnnotations:
    return ToolAnnotations(
        read_only_hint=effect == "pure", idempotent_hint=effect != "unsafe", destructive_hint=effect == "unsafe"
    )
