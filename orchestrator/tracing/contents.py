"""Contents of steps, for installations that opt in: messages, arguments and results, in the form of the conventions.

The journal stores what a call had in addition to earlier ones, so a model call's input is its new messages. Thoughts,
and blocks of kinds that are not known here, are named and not exported. System prompts are in the agent's version.
"""

from __future__ import annotations

import json
from typing import Any

from orchestrator.tracing.ended import Row
from shared.contracts.content import describe, outline
from shared.contracts.strict_json import parse
from shared.contracts.visible_text import one_line
from shared.errors import InvalidInput

LONGEST = 64 << 10
"""Characters of an attribute."""
LONGEST_PART = 16 << 10
"""Characters of one text, tool input or result."""

OPTED_IN = frozenset({"true", "span_only", "span_and_event"})

FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_call",
    "refusal": "content_filter",
}
"""Stop reasons of the Messages API by the names that the conventions have for them."""

Part = dict[str, Any]


def are_exported(setting: str) -> bool:
    """Return whether OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT permits contents in spans."""
    return setting.lower() in OPTED_IN


def finish_reason(stop_reason: Any) -> str | None:
    """Return a stop reason by the name that the conventions have for it; None if there is none."""
    return FINISH_REASONS.get(stop_reason, stop_reason) if isinstance(stop_reason, str) else None


def of_step(row: Row) -> dict[str, str | None]:
    """Return the attributes with a step's input and output; what is too large is left out."""
    sent, output = _parse(row["input"]), _parse(row["output"])
    match row["kind"]:
        case "model_call":
            return {
                "gen_ai.input.messages": _messages(sent),
                "gen_ai.output.messages": _reply(output, row["stop_reason"]),
            }
        case "tool_call" | "function_call":
            arguments = sent["arguments"] if isinstance(sent, dict) and "arguments" in sent else sent
            return {
                "gen_ai.tool.call.arguments": _json(arguments),
                "gen_ai.tool.call.result": _json(output),
            }
    return {}


def _parse(stored: str | None) -> Any:
    """Return a step's input or output; None if it cannot be exported, because it is nested deeply, for example."""
    try:
        return None if stored is None else parse(stored)
    except InvalidInput:
        return None


def _messages(journaled: Any) -> str | None:
    """Return a call's new messages, the newest ones if not all of them fit."""
    if not isinstance(journaled, dict) or not isinstance(journaled.get("messages"), list):
        return None
    fitting: list[str] = []
    size = 2
    for message in reversed([each for each in journaled["messages"] if isinstance(each, dict)]):
        text = _dump({"role": str(message.get("role")), "parts": _parts(message.get("content"))})
        size += len(text) + 2
        if size > LONGEST:
            break
        fitting.append(text)
    return f"[{', '.join(reversed(fitting))}]" if fitting else None


def _reply(output: Any, stop_reason: Any) -> str | None:
    if not isinstance(output, dict):
        return None
    reason = finish_reason(stop_reason) or "unknown"
    text = _dump([{"role": "assistant", "parts": _parts(output.get("content")), "finish_reason": reason}])
    return text if len(text) <= LONGEST else None


def _parts(content: Any) -> list[Part]:
    if isinstance(content, str):
        return [{"type": "text", "content": _short(content)}]
    return [_part(block) for block in content if isinstance(block, dict)] if isinstance(content, list) else []


def _part(block: dict[str, Any]) -> Part:
    match block.get("type"):
        case "text":
            return {"type": "text", "content": _short(str(block.get("text", "")))}
        case "tool_use":
            arguments = _short(_dump(block.get("input")))
            return {"type": "tool_call", "id": block.get("id"), "name": block.get("name"), "arguments": arguments}
        case "tool_result":
            result = block.get("content")
            response = _short(result if isinstance(result, str) else outline(result) if result else "")
            return {"type": "tool_call_response", "id": block.get("tool_use_id"), "response": response}
        case "image" | "document" | "search_result":
            # Files themselves are not exported.
            return {"type": "text", "content": _short(describe(block))}
    return {"type": str(block.get("type"))[:100]}


def _json(value: Any) -> str | None:
    text = _dump(value)
    return None if value is None else _short(text)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_PART else f"{text[:LONGEST_PART]}… ({len(text)} characters)"


def _dump(value: Any) -> str:
    return one_line(json.dumps(value, ensure_ascii=False))
