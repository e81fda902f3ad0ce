"""Agents with the names, schemas and behaviours that the suite prescribes: they run as any agent does."""

from __future__ import annotations

from typing import Any

CAPABILITY = "conformance"
NOTHING: dict[str, Any] = {"type": "object", "properties": {}}
TEXT = {"type": "string"}
SCHEMA_2020_12 = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {"address": {"$anchor": "addressDef", "type": "object", "properties": {"street": TEXT, "city": TEXT}}},
    "properties": {
        "name": TEXT,
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": TEXT,
        "email": TEXT,
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}
OFFERED = ("perform", "slow", "fail", "fault")


def definitions() -> list[dict[str, Any]]:
    """Return the definitions of tools and agents."""
    seconds = {"type": "object", "properties": {"seconds": {"type": "number"}, "label": TEXT}, "required": ["seconds"]}
    return [
        *(_tool(name) for name in OFFERED),
        _agent("test_simple_text", "perform", NOTHING),
        _agent("test_error_handling", "fail", NOTHING),
        _agent("test_tool_with_progress", "slow", NOTHING),
        _agent("greet", "perform", {"type": "object", "properties": {"name": TEXT}, "required": ["name"]}),
        _agent("slow_compute", "perform", seconds),
        _agent("failing_job", "fail", NOTHING),
        _agent("protocol_error_job", "fault", NOTHING),
        _agent("confirm_delete", "perform", {"type": "object", "properties": {"filename": TEXT}}, approval=True),
        _agent("json_schema_2020_12_tool", "perform", SCHEMA_2020_12),
    ]


def _tool(name: str) -> dict[str, Any]:
    return {"kind": "tool", "name": name, "type": "builtin", "builtin": name, "effect": "idempotent"}


def _agent(name: str, tool: str, schema: dict[str, Any], **config: Any) -> dict[str, Any]:
    return {
        "kind": "agent",
        "name": name,
        "type": "function",
        "tool": tool,
        "description": f"Does what the suite wants of {name}.",
        "input_schema": schema,
        "config": {"capabilities": [CAPABILITY], "max_attempts": 1, **config},
    }
