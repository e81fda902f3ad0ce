"""Agents with the names, schemas and behaviours that the suite prescribes: they run as any agent does."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from sqlalchemy.orm import Session

from minions.testing import text, tool_use
from shared.contracts.documents import parse_definition
from shared.database.connections import get_engine
from shared.definitions.store import DefinitionStore

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
ASKING = ("delete_one", "delete_other")
SCRIPT = [
    {**text("Both are deleted."), "if": "tool_result"},
    tool_use(*((name, {"filename": name}) for name in ASKING)),
]
"""The replies of the model behind `multi_input`."""


def definitions() -> list[dict[str, Any]]:
    """Return the definitions of tools and agents."""
    seconds = {"type": "object", "properties": {"seconds": {"type": "number"}, "label": TEXT}, "required": ["seconds"]}
    return [
        *(_tool(name) for name in OFFERED),
        *(_ask(name) for name in ASKING),
        _agent("test_simple_text", "perform", NOTHING),
        _agent("test_error_handling", "fail", NOTHING),
        _agent("test_tool_with_progress", "slow", NOTHING),
        _agent("greet", "perform", {"type": "object", "properties": {"name": TEXT}, "required": ["name"]}),
        _agent("slow_compute", "perform", seconds),
        _agent("failing_job", "fail", NOTHING),
        _agent("protocol_error_job", "fault", NOTHING),
        _agent("confirm_delete", "perform", {"type": "object", "properties": {"filename": TEXT}}, approval=True),
        _agent(
            "slow_greet", "perform", {"type": "object", "properties": {"name": TEXT, "seconds": {"type": "number"}}}
        ),
        {
            "kind": "agent",
            "name": "multi_input",
            "model": "claude-sonnet-5-5",
            "description": "Makes two calls that a person must approve, in one turn.",
            "input_schema": NOTHING,
            "tools": list(ASKING),
            "config": {"capabilities": [CAPABILITY]},
        },
        _agent("json_schema_2020_12_tool", "perform", SCHEMA_2020_12),
    ]


def another_agent() -> dict[str, Any]:
    """Return an agent with a new name."""
    return _agent(f"another_{uuid4().hex[:8]}", "perform", NOTHING)


def store(found: list[dict[str, Any]]) -> None:
    """Store definitions."""
    with Session(get_engine()) as session, session.begin():
        DefinitionStore(session, validate_code=lambda function: None).apply([parse_definition(each) for each in found])


def _tool(name: str) -> dict[str, Any]:
    return {"kind": "tool", "name": name, "type": "builtin", "builtin": name, "effect": "idempotent"}


def _ask(name: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"filename": TEXT}}
    asks = {"builtin": "perform", "approval": True, "input_schema": schema, "description": "Deletes a file."}
    return {**_tool(name), **asks}


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
