"""Definitions of the smallest agent and function, for tests of what happens around them."""

from __future__ import annotations

from typing import Any

NOOP = {"kind": "tool", "name": "noop", "type": "builtin", "builtin": "noop", "effect": "pure"}


def agent_definition(name: str, *capabilities: str, **fields: Any) -> dict[str, Any]:
    """Return the definition of an agent that runs the tool `noop`."""
    config = {"capabilities": list(capabilities or ["work"]), **fields.pop("config", {})}
    return {"kind": "agent", "name": name, "type": "function", "tool": "noop", "config": config, **fields}


def function_definition(name: str = "double", code: str | None = None, **fields: Any) -> dict[str, Any]:
    """Return the definition of a function that doubles `x`."""
    return {"kind": "function", "name": name, "code": code or f"def {name}(x):\n    return 2 * x\n", **fields}
