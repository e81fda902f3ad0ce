"""The turns of an agent with its model, from the steps of its journal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from orchestrator import server_tools

THOUGHTS = ("thinking", "redacted_thinking")


def turns_of(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was said, in order: `role`, `step`, and `blocks` of `kind` (text, thought, call, result) and `text`.

    Each model call has only the messages that are new in it, so nothing is repeated.
    """
    return [turn for step in steps if step["kind"] == "model_call" for turn in _of_call(step)]


def _of_call(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
    asked, reply = step["input"], step["output"]
    if not isinstance(asked, dict):
        yield _turn(step, "request", [_block("text", "", asked)])
        asked = {}
    messages = asked.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            yield _turn(step, str(message.get("role")), list(_blocks(message.get("content"))))
    if reply is not None:
        content = reply.get("content") if isinstance(reply, dict) else reply
        yield _turn(step, "model", list(_blocks(content)))
    elif step["error"]:
        yield _turn(step, "error", [_block("text", "", step["error"])])


def _blocks(content: Any) -> Iterator[dict[str, Any]]:
    for block in content if isinstance(content, list) else [content]:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text" and isinstance(block.get("text"), str):
            yield _block("text", "", block["text"])
        elif kind in THOUGHTS:
            yield _block("thought", "Thinking", block.get("thinking") or block.get("data") or "")
        elif kind == "tool_use":
            yield _block("call", f"Calls {block.get('name')}", block.get("input"))
        elif kind == "tool_result":
            yield _block("result", "Error of the call" if block.get("is_error") else "Result", _result(block))
        elif kind == "server_tool_use":
            yield _block("call", server_tools.act_of(block), server_tools.asked_of(block))
        elif isinstance(block, dict) and server_tools.is_answer(block):
            answer, failed = server_tools.answer_of(block)
            yield _block("result", "Error of the API" if failed else "Result", answer)
        else:
            yield _block("text", "", block)


def _result(block: dict[str, Any]) -> Any:
    """Return the result of a tool: the journal has its JSON as text."""
    content = block.get("content")
    if not isinstance(content, str):
        return content
    try:
        return json.loads(content)
    except ValueError:
        return content


def _turn(step: dict[str, Any], role: str, blocks: list[dict[str, Any]]) -> dict[str, Any]:
    return {"step": step["number"], "role": role, "blocks": blocks}


def _block(kind: str, title: str, value: Any) -> dict[str, Any]:
    return {"kind": kind, "title": title, "value": value}
