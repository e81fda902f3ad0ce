"""Messages as they are sent: places of system messages, tool results, marks for the prompt cache."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from minions import testing
from workers.llm.base import ModelRequest
from workers.llm.wire import SILENT_FAILURE, messages_of, takes_system_messages

NEW, OLD = "claude-opus-5-5", "claude-sonnet-4-6"
MARK = {"cache_control": {"type": "ephemeral"}}


def conversation(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def as_sent(messages: list[dict[str, Any]], model: str = NEW, **options: Any) -> list[dict[str, Any]]:
    return messages_of(ModelRequest(model, "", messages, (), max_tokens=1, **options))


def unmarked(messages: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """Return roles and contents, without marks."""
    turns = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            blocks = [{name: value for name, value in block.items() if name not in MARK} for block in content]
            content = blocks[0]["text"] if [block["type"] for block in blocks] == ["text"] else blocks
        turns.append((message["role"], content))
    return turns


def marked(messages: list[dict[str, Any]]) -> list[int]:
    """Return the positions of the messages with a mark on their last block."""
    places = []
    for place, message in enumerate(messages):
        blocks = [block for block in message["content"] if isinstance(block, dict)]
        assert not any("cache_control" in block for block in blocks[:-1])
        places += [place] if blocks and "cache_control" in blocks[-1] else []
    return places


RULE = ("system", "In French.")
REMINDER = ("user", "<system-reminder>\nIn French.\n</system-reminder>")


@pytest.mark.parametrize(
    ("given", "new", "old"),
    [
        ([("user", "a"), RULE], [("user", "a"), RULE], [("user", "a"), REMINDER]),
        (
            [("user", "a"), ("assistant", "b"), RULE, ("user", "c")],
            [("user", "a"), ("assistant", "b"), ("user", "c"), RULE],
            [("user", "a"), ("assistant", "b"), REMINDER, ("user", "c")],
        ),
        (
            [("user", "a"), RULE, ("system", "Be brief."), ("assistant", "b"), ("user", "c")],
            [("user", "a"), ("system", "In French.\n\nBe brief."), ("assistant", "b"), ("user", "c")],
            [
                ("user", "a"),
                REMINDER,
                ("user", "<system-reminder>\nBe brief.\n</system-reminder>"),
                ("assistant", "b"),
                ("user", "c"),
            ],
        ),
        (
            [("user", "a"), ("assistant", "b"), RULE],
            [("user", "a"), ("assistant", "b"), REMINDER],
            [("user", "a"), ("assistant", "b"), REMINDER],
        ),
    ],
)
def test_system_messages_keep_their_place(given: Any, new: Any, old: Any) -> None:
    assert unmarked(as_sent(conversation(*given), NEW)) == new
    assert unmarked(as_sent(conversation(*given), OLD)) == old
    for model in (NEW, OLD):
        assert testing._fault({"model": model, "messages": as_sent(conversation(*given), model)}) is None


@pytest.mark.parametrize(
    "model", ["claude-opus-4-8", "claude-opus-5", "claude-fable-5-1", "claude-sonnet-5-5-20261001", "claude-haiku-5.5"]
)
def test_new_models_accept_system_messages(model: str) -> None:
    assert takes_system_messages(model)


@pytest.mark.parametrize(
    "model",
    ["claude-opus-4-7", "claude-opus-4-20250514", "claude-sonnet-5", "claude-haiku-4-5", "claude-3-5-haiku", "x"],
)
def test_other_models_accept_no_system_messages(model: str) -> None:
    assert not takes_system_messages(model)


def result(content: str, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "1", "content": content, **more}


@pytest.mark.parametrize(
    ("kept", "shown"),
    [
        (result('"He said \\"a\\".\\nThen b."'), result('He said "a".\nThen b.')),
        (result('"5"'), result("5")),
        (result('{"a": "b"}'), result('{"a": "b"}')),
        (result("5"), result("5")),
        (result("null"), result("null")),
        (result('""'), result('""')),
        (result('" \\n"'), result('" \\n"')),
        (result('"quoted" was not found', is_error=True), result('"quoted" was not found', is_error=True)),
        (result("", is_error=True), result(SILENT_FAILURE, is_error=True)),
        (result("\n", is_error=True), result(SILENT_FAILURE, is_error=True)),
    ],
)
def test_tool_results_are_sent_as_text(kept: dict[str, Any], shown: dict[str, Any]) -> None:
    [(_, blocks)] = unmarked(as_sent(conversation(("user", [kept]))))
    assert blocks == [shown]


def test_tool_results_as_0_2_sent_them() -> None:
    [(_, blocks)] = unmarked(as_sent(conversation(("user", [result('"a"')])), results_as_json=True))
    assert blocks == [result('"a"')]


CALLS = [{"type": "tool_use", "id": str(number), "name": "f", "input": {}} for number in range(12)]
RESULTS = [{"type": "tool_result", "tool_use_id": str(number), "content": "1"} for number in range(12)]


@pytest.mark.parametrize(
    ("turns", "places"),
    [
        ([("user", "a")], [0]),
        ([("user", "a"), ("assistant", CALLS), ("user", RESULTS)], [0, 2]),
        ([("user", "a"), ("assistant", CALLS), ("user", RESULTS), ("assistant", CALLS), ("user", RESULTS)], [2, 4]),
        # One paused turn, then two.
        ([("user", "a"), ("assistant", "b")], [0, 1]),
        ([("user", "a"), ("assistant", "b"), ("assistant", "c")], [1, 2]),
        ([("user", "a"), RULE, ("assistant", "b"), ("user", "c")], [1, 3]),
        # Thinking blocks cannot have a mark.
        ([("user", "a"), ("assistant", [{"type": "thinking", "thinking": "", "signature": ""}])], [0]),
        ([("assistant", "a")], [0]),
    ],
)
def test_last_and_previous_turn_end_are_marked(turns: Any, places: list[int]) -> None:
    assert marked(as_sent(conversation(*turns))) == places


def test_each_request_marks_the_end_of_the_previous_one() -> None:
    """The cache that one turn writes is found by the next one, however many blocks are between."""
    turns = [("user", "a"), *[("assistant", CALLS), ("user", RESULTS)] * 5]
    ends = [marked(as_sent(conversation(*turns[:length]))) for length in range(1, len(turns) + 1, 2)]
    assert all(before[-1] in after for before, after in pairwise(ends))
