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
    """Return remarks about a step, as the API shows it. A reader who must not see payloads receives fewer."""
    return [*_of_usage(step.get("usage") or {}), *_of_reply(step.get("output"))]


def _of_usage(usage: Mapping[str, Any]) -> Iterator[str]:
    miss = usage.get("cache_miss") or {}
    # The API compares requests; the cache may have had the prompt all the same.
    unread = usage.get("input_tokens", 0) - usage.get("cache_read_input_tokens", 0)
    again = min(miss.get("cache_missed_input_tokens") or 0, unread)
    if again > 0 and miss.get("type") in CHANGED:
        yield f"paid {again:,} tokens again because {CHANGED[miss['type']]}"


def _of_reply(reply: Any) -> Iterator[str]:
    if not isinstance(reply, dict):
        return
    before = reply.get("instead_of")
    if isinstance(before, dict):
        yield f"instead of {before.get('model')}, {REASONS.get(str(before.get('reason')), '')}"
    content = reply.get("content")
    blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    if any(block.get("type") == "compaction" and block.get("content") for block in blocks):
        yield "the conversation was compacted"
    for edit in reply.get("edits") or ():
        if isinstance(edit, dict) and isinstance(edit.get("cleared_input_tokens"), int):
            yield f"{edit['cleared_input_tokens']:,} tokens were left out by {edit.get('type')}"
