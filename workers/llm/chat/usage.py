"""Usage as the Chat Completions API reports it."""

from __future__ import annotations

import math
from typing import Any

from shared.errors import ModelError
from shared.providers import Provider

MOST = 10**9
"""A larger number in a report is an error, and would not fit into the columns of PostgreSQL."""
COUNTS = ("prompt_tokens", "completion_tokens")
OPTIONS = "stream_options"
REFUSALS = frozenset({400, 422})
_without_options: set[str] = set()
"""Addresses of servers that refuse the field by which a stream is asked to report the usage. They report it anyway."""


def options_of(provider: Provider) -> dict[str, Any] | None:
    """Return the field; None: it is not sent."""
    return None if provider.address in _without_options else {"include_usage": True}


def forget_options(provider: Provider, error: ModelError) -> bool:
    """Send the field no more to this server if that is what it refuses; return whether it is."""
    refuses = was_refused(error) and OPTIONS in error.message and options_of(provider) is not None
    if refuses:
        _without_options.add(provider.address)
    return refuses


def was_refused(error: ModelError) -> bool:
    """Return whether a request was refused because of its content, without a charge."""
    return error.detail.get("http_status") in REFUSALS and not error.detail.get("cost_unknown")


def usage_in(received: dict[str, Any]) -> dict[str, Any]:
    """Return what a chunk, or a whole completion, reports of the usage so far; empty if that is nothing.

    Groq has it under its own name, and Moonshot in the choice.
    """
    groq = received.get("x_groq")
    choices = received.get("choices") or [{}]
    places = (received, groq if isinstance(groq, dict) else {}, choices[0])
    reports = (place["usage"] for place in places if isinstance(place.get("usage"), dict))
    usage: dict[str, Any] = next((each for each in reports if any(_count(each, name) for name in COUNTS)), {})
    # Some reports have only a part of the numbers, after others with the rest.
    return {name: value for name, value in usage.items() if value}


def tokens_of(usage: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a `ModelReply` that describe tokens.

    Tokens of thoughts are part of those of the answer. If a server counts them separately, as its total then shows,
    they are added: xAI says how many they are, and Gemini does not.
    """
    asked, answered = (_count(usage, name) for name in COUNTS)
    thoughts = _count(usage, "completion_tokens_details", "reasoning_tokens")
    cached = (
        _count(usage, "prompt_tokens_details", "cached_tokens")
        or _count(usage, "prompt_cache_hit_tokens")
        or _count(usage, "cached_tokens")
    )
    beside = _count(usage, "total_tokens") - asked - answered
    if beside > 0 and (beside == thoughts or not thoughts) and beside != cached:
        answered, thoughts = answered + beside, beside
    return {
        "input_tokens": asked,
        "output_tokens": answered,
        "cache_read_tokens": min(cached, asked),
        "cache_write_tokens": min(_count(usage, "prompt_tokens_details", "cache_write_tokens"), asked),
        "used_besides": {"thinking_tokens": thoughts} if thoughts else {},
    }


def _count(reported: Any, *path: str) -> int:
    """Return a number in the report, at most `MOST`; 0 if it is absent."""
    for name in path:
        reported = reported.get(name) if isinstance(reported, dict) else None
    if isinstance(reported, bool) or not isinstance(reported, int | float) or not math.isfinite(reported):
        return 0
    return int(min(max(0, reported), MOST))
