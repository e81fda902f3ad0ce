"""Ended tasks as results of tool calls."""

from __future__ import annotations

import json
from typing import Any

from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, CallToolResult, TextContent

from minions.aio.task import AsyncTask

TASK_KEY = "minions/task-id"
"""In `_meta` of a result: the task that it is from."""
FAULT = "internal_error"
"""The kind of error that is no result of the agent's work, but a fault of the installation."""


def result_of(task: AsyncTask, *, any_json: bool) -> CallToolResult:
    """Return the result of a task that has ended: its output, or an error that a model can read.

    Args:
        any_json: structured content may be any JSON; otherwise it must be an object, as the protocol had it until
            2025-11-25.

    Raises:
        MCPError: the installation failed, not the agent.
    """
    meta = {TASK_KEY: task.id}
    if task.succeeded:
        structured = {"structured_content": task.output} if any_json or isinstance(task.output, dict) else {}
        return CallToolResult(content=[text_of(task.output)], _meta=meta, **structured)
    error = task.error or {}
    why = error.get("message") or f"Task {task.id} is {task.state}."
    if error.get("type") == FAULT:
        raise MCPError(INTERNAL_ERROR, why, {"code": FAULT, "taskId": task.id})
    return CallToolResult(content=[text_of(why)], is_error=True, _meta=meta)


def text_of(value: Any) -> TextContent:
    """Return a value as a block of text: JSON, unless it is text."""
    return TextContent(type="text", text=value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def structured(value: dict[str, Any]) -> CallToolResult:
    """Return an object as the result of a tool."""
    return CallToolResult(content=[text_of(value)], structured_content=value)
