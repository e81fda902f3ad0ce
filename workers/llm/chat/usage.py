"""Usage as the Chat Completions API reports it."""

from __future__ import annotations

from typing import Any

MOST = 10**9
"""A larger number in a report is an error, and would not fit into the columns of PostgreSQL."""


def tokens_of(usage: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a `ModelReply` that describe tokens.

    Tokens of thoughts are part of those of the answer. If a server counts them separately, as its total then shows,
    they are added.
    """
    asked, answered = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    thoughts = _count(usage, "completion_tokens_details", "reasoning_tokens")
    if thoughts and _count(usage, "total_tokens") == asked + answered + thoughts:
        answered += thoughts
    cached = _count(usage, "prompt_tokens_details", "cached_tokens") or _count(usage, "prompt_cache_hit_tokens")
    return {
        "input_tokens": asked,
        "output_tokens": answered,
        "cache_read_tokens": min(cached, asked),
        "cache_write_tokens": min(_count(usage, "prompt_tokens_details", "cache_write_tokens"), asked),
        "used_besides": {"thinking_tokens": thoughts} if thoughts else {},
    }


def _count(told: Any, *path: str) -> int:
    """Return a number in the report, at most `MOST`; 0 if it is absent."""
    for name in path:
        told = told.get(name) if isinstance(told, dict) else None
    return min(max(0, told), MOST) if type(told) is int else 0
