"""Remarks about a model's turn for people: which model it replaces, what was paid for again, what was left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

CHANGED = {
    "model_changed": "the model changed",
    "system_changed": "the system prompt changed",
    "tools_changed": "the tools changed",
    "messages_changed": "earlier messages changed",
}
REASONS = {"refusal": "which refused to answer", "unavailable": "which was unavailable"}


def notes_of(step: Mapping[str, Any]) -> list[str]:
    """Return remarks about a step, as the API shows it. A reader who must not see payloads receives fewer.

    The reply may have any shape: an operator may have edited it.
    """
    if step.get("kind") != "model_call":
        return []
    return [*_of_usage(step.get("usage")), *_of_reply(step.get("output"))]


def _of_usage(usage: Any) -> Iterator[str]:
    miss = usage.get("cache_miss") if isinstance(usage, dict) else None
    if not isinstance(miss, dict):
        return
    # The API compares requests; the cache may have had the prompt all the same.
    unread = _number(usage.get("input_tokens")) - _number(usage.get("cache_read_input_tokens"))
    again = min(_number(miss.get("cache_missed_input_tokens")), unread)
    changed = CHANGED.get(str(miss.get("type")))
    if again > 0 and changed:
        yield f"paid {again:,} tokens again because {changed}"


def _of_reply(reply: Any) -> Iterator[str]:
    if not isinstance(reply, dict):
        return
    before = reply.get("instead_of")
    if isinstance(before, dict):
        reason = REASONS.get(str(before.get("reason")))
        yield f"instead of {before.get('model')}{f', {reason}' if reason else ''}"
    content = reply.get("content")
    blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    if any(block.get("type") == "compaction" and block.get("content") for block in blocks):
        yield "the conversation was compacted"
    edits = reply.get("edits")
    for edit in edits if isinstance(edits, list) else ():
        if isinstance(edit, dict) and isinstance(edit.get("cleared_input_tokens"), int):
            yield f"{edit['cleared_input_tokens']:,} tokens were left out by {edit.get('type')}"


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
