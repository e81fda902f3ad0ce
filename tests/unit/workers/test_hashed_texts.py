"""Texts of ours that a task sends to a model again when it runs again.

The hashes of journaled steps cover them. If one changed, tasks that an earlier release began would fail with
`history_diverged`, so a change needs a new journal format.
"""

from __future__ import annotations

import hashlib

import pytest

from tests.support.processes import ROOT
from workers import conversation, journal

HASHED = [
    ("shared/contracts/strict_json.py", "the key {twice[:50]!r} stands twice in one object."),
    ("workers/journal.py", "Nobody has approved {name!r} in time."),
    ("workers/model_agent.py", "Your answer is empty. Please continue."),
    ("workers/model_agent.py", "Your answer cannot be used: {fault}. Answer with the JSON only."),
    ("workers/model_router.py", "Your answer cannot be used: {fault} Answer with the JSON only."),
    ("workers/tool_calls.py", "There is no tool named {name!r}; there are: {known}."),
    ("workers/tool_calls.py", "The input of tool {tool.name!r} is not valid JSON."),
    ("workers/tool_calls.py", "The input of tool {tool.name!r} does not match its schema: {listed}."),
    ("workers/tool_calls.py", "Not called: {limit} calls are the most in one turn."),
    (
        "workers/tool_calls.py",
        "The result has {len(content):,} characters, and {MAX_RESULT:,} is the most. Ask for less of it.",
    ),
]


@pytest.mark.parametrize(("file", "text"), HASHED)
def test_text_in_hashed_requests_is_unchanged(file: str, text: str) -> None:
    assert journal.FORMAT == 1, "A new format may have other texts."
    assert text in (ROOT / file).read_text(encoding="utf-8")


def test_prompt_for_summaries_is_unchanged() -> None:
    assert conversation.HEAD == "[Summary of the conversation before this message]"
    assert hashlib.sha256(conversation.INSTRUCTIONS.encode()).hexdigest()[:16] == "52a6e6f2d9c17078"
