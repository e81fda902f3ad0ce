"""Conversations after a compaction."""

from __future__ import annotations

from typing import Any

from workers.compaction import after_compaction

ASKED = {"role": "user", "content": "Hello"}
SUMMARY = {"type": "compaction", "content": "They said hello.", "encrypted_content": "x"}
FAILED = {"type": "compaction", "content": None, "encrypted_content": None}
TEXT = {"type": "text", "text": "Hi."}
MORE = {"role": "user", "content": "More"}


def reply(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": [*blocks]}


def test_messages_before_the_summary_are_left_out() -> None:
    assert after_compaction([ASKED, reply(TEXT, SUMMARY, TEXT), MORE]) == [reply(SUMMARY, TEXT), MORE]


def test_latest_summary_counts() -> None:
    assert after_compaction([ASKED, reply(SUMMARY), MORE, reply(SUMMARY, TEXT), MORE]) == [reply(SUMMARY, TEXT), MORE]


def test_failed_summary_replaces_nothing() -> None:
    assert after_compaction([ASKED, reply(FAILED, TEXT), MORE]) == [ASKED, reply(FAILED, TEXT), MORE]


def test_conversation_without_a_summary_stays_whole() -> None:
    assert after_compaction([ASKED, reply(TEXT), MORE]) == [ASKED, reply(TEXT), MORE]


def test_result_after_a_summary_keeps_its_call() -> None:
    call = {"type": "tool_use", "id": "toolu_1", "name": "act", "input": {}}
    results = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "1"}]}
    cut_between = [ASKED, reply(call, SUMMARY, {**call, "id": "toolu_2"}), results]
    assert after_compaction(cut_between) == cut_between
    assert after_compaction([ASKED, reply(SUMMARY), *cut_between]) == [reply(SUMMARY), *cut_between]
    assert after_compaction([ASKED, reply(SUMMARY, call), results]) == [reply(SUMMARY, call), results]
