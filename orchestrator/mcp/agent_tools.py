"""Agents as tools: each active agent with an input schema."""

from __future__ import annotations

from typing import Any

from mcp_types import Tool, ToolAnnotations

from minions.errors import InvalidInput

Contract = dict[str, Any]

RENAMED = "agent."
"""Begins the tool's name of an agent that is called like a tool of ours."""
WRAPPED = "input"
"""The argument for the input of an agent whose schema does not describe an object: arguments are always one."""
HEADER = "x-mcp-header"
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
        name=f"{RENAMED}{name}" if name in taken else name,
        description=contract["description"] or f"The agent {name}.",
        input_schema=_arguments_schema(contract),
        output_schema=_output_schema(contract["output_schema"], has_tasks=has_tasks, any_json=any_json),
        annotations=_annotations(contract["effect"]),
    )


def agent_of(name: str, *, taken: frozenset[str]) -> str:
    """Return the agent behind a tool's name."""
    return bare if (bare := name.removeprefix(RENAMED)) in taken else name


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
    parts, inner = _split(schema)
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


def _split(schema: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what must stay at the root, because references name it from there, and the rest of a schema."""
    parts = {keyword: schema[keyword] for keyword in AT_ROOT if keyword in schema}
    return parts, {keyword: value for keyword, value in schema.items() if keyword not in parts}


def _output_schema(schema: dict[str, Any] | None, *, has_tasks: bool, any_json: bool) -> dict[str, Any] | None:
    if schema is None or not (any_json or _is_object(schema)):
        return None
    root = {"type": "object"} if _is_object(schema) else {}
    if has_tasks:
        return {**schema, **root}
    # Clients check a result against the schema, and a handle is one too.
    parts, own = _split(schema)
    return {**parts, **root, "anyOf": [own, HANDLE]}


def _is_object(schema: dict[str, Any]) -> bool:
    return schema.get("type", "object" if "properties" in schema else None) == "object"


def _annotations(effect: str) -> ToolAnnotations:
    return ToolAnnotations(
        read_only_hint=effect == "pure", idempotent_hint=effect != "unsafe", destructive_hint=effect == "unsafe"
    )
