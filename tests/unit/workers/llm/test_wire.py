"""Messages as they are sent: places of system messages, tool results."""

from __future__ import annotations

from typing import Any

import pytest

from minions import testing
from workers.llm.base import ModelRequest
from workers.llm.files import with_files
from workers.llm.structured import format_of
from workers.llm.wire import SILENT_FAILURE, messages_of, takes_system_messages

NEW, OLD = "claude-opus-5-5", "claude-sonnet-4-6"


def conversation(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def as_sent(messages: list[dict[str, Any]], model: str = NEW, **options: Any) -> list[dict[str, Any]]:
    return messages_of(ModelRequest(model, "", messages, (), max_tokens=1, **options))


def said_in(messages: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """Return roles and contents."""
    turns = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = content[0]["text"] if [block["type"] for block in content] == ["text"] else content
        turns.append((message["role"], content))
    return turns


FOREIGN = "file_" + "0" * 64


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image"},
        {"type": "image", "source": "x"},
        {"type": "image", "source": {"type": "base64"}},
        {"type": "image", "source": {"type": "file", "file_id": 3}},
        {"type": "image", "source": {"type": "file", "file_id": FOREIGN}},
        {"type": "document", "source": {"type": "content", "content": [1]}},
        {"type": "document", "citations": [1]},
        {"type": "tool_result", "content": [5]},
    ],
)
def test_blocks_of_a_model_are_sent_unread(block: dict[str, Any]) -> None:
    messages = conversation(("user", "a"), ("assistant", [block]), ("user", "b"))
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    request = ModelRequest(NEW, "", messages, (), max_tokens=1, output_schema=schema, constrained=True)
    assert with_files(request) == request
    assert format_of(request) is not None
    assert request.estimated_tokens() > 0
    assert messages_of(request)[1]["content"] == [block]


CALL = [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]
RESULT = [{"type": "tool_result", "tool_use_id": "t", "content": []}]
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
        # A result must follow its call directly.
        (
            [("assistant", CALL), RULE, ("user", RESULT)],
            [("assistant", CALL), ("user", RESULT), RULE],
            [("assistant", CALL), ("user", RESULT), REMINDER],
        ),
        (
            [("user", "a"), ("assistant", "b"), RULE],
            [("user", "a"), ("assistant", "b"), REMINDER],
            [("user", "a"), ("assistant", "b"), REMINDER],
        ),
    ],
)
def test_system_messages_keep_their_place(given: Any, new: Any, old: Any) -> None:
    assert said_in(as_sent(conversation(*given), NEW)) == new
    assert said_in(as_sent(conversation(*given), OLD)) == old
    for model in (NEW, OLD):
        assert testing._fault({"model": model, "messages": as_sent(conversation(*given), model)}) is None


def test_system_messages_have_a_form_that_all_models_of_a_task_accept() -> None:
    given = conversation(("user", "a"), RULE, ("assistant", "b"), ("user", "c"))
    assert said_in(as_sent(given, NEW, other_models=(OLD,))) == said_in(as_sent(given, OLD, other_models=(NEW,)))


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
    [(_, blocks)] = said_in(as_sent(conversation(("user", [kept]))))
    assert blocks == [shown]


def test_tool_results_as_0_2_sent_them() -> None:
    [(_, blocks)] = said_in(as_sent(conversation(("user", [result('"a"')])), results_as_json=True))
    assert blocks == [result('"a"')]
