"""Remarks about a model's turn."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.turn_notes import notes_of


def missed(kind: str, tokens: int = 41_000, read: int = 0) -> dict[str, Any]:
    miss = {"type": kind, "cache_missed_input_tokens": tokens}
    return {"usage": {"input_tokens": 50_000, "cache_read_input_tokens": read, "cache_miss": miss}}


@pytest.mark.parametrize(
    ("step", "notes"),
    [
        (missed("tools_changed"), ["paid 41,000 tokens again because the tools changed"]),
        (missed("model_changed"), ["paid 41,000 tokens again because the model changed"]),
        (missed("system_changed", 60_000), ["paid 50,000 tokens again because the system prompt changed"]),
        # The cache had the prompt all the same.
        (missed("messages_changed", read=50_000), []),
        (missed("unavailable"), []),
        ({"usage": {"cache_miss": {"type": "previous_message_not_found"}}}, []),
        ({"usage": None, "output": None}, []),
        ({"output": "[hidden]"}, []),
        (
            {"output": {"content": [{"type": "compaction", "content": "So far."}]}},
            ["the conversation was compacted"],
        ),
        ({"output": {"content": [{"type": "compaction", "content": None}]}}, []),
        (
            {"output": {"instead_of": {"model": "claude-opus-5-5", "reason": "refusal"}}},
            ["instead of claude-opus-5-5, which refused to answer"],
        ),
        (
            {"output": {"edits": [{"type": "clear_tool_uses_20250919", "cleared_input_tokens": 9000}]}},
            ["9,000 tokens were left out by clear_tool_uses_20250919"],
        ),
    ],
)
def test_step_has_notes(step: dict[str, Any], notes: list[str]) -> None:
    assert notes_of({"kind": "model_call", **step}) == notes


def test_other_steps_have_no_notes() -> None:
    output = {"instead_of": {"model": "claude-opus-5-5", "reason": "refusal"}, "edits": 5}
    assert notes_of({"kind": "function_call", "output": output}) == []


@pytest.mark.parametrize(
    "odd", [None, True, 5, "text", [1], [{}], {}, {"type": [1]}, {"cache_missed_input_tokens": "9"}]
)
def test_step_of_any_shape_is_read(odd: Any) -> None:
    for step in ({"usage": odd}, {"usage": {"input_tokens": 9, "cache_miss": odd}}, {"output": odd}):
        assert notes_of({"kind": "model_call", **step}) == []
    for name in ("content", "edits"):
        assert notes_of({"kind": "model_call", "output": {name: odd}}) == []
