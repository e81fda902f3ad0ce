"""Messages: shapes of other frameworks, and the task input they become."""

from __future__ import annotations

from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from shared.contracts.requests import AIMessage, HumanMessage, Message, SystemMessage
from shared.errors import InvalidInput
from shared.tasks.messages import checked_input, coerce, coerce_all, input_for, last_text

TEXT_A = {"type": "text", "text": "a"}
BLOCKS = [{"type": "text", "text": "a"}, {"type": "text", "text": " "}, {"text": "b\n"}, "c"]


@pytest.mark.parametrize(
    ("message", "role", "content"),
    [
        (HumanMessage(content="x"), "user", "x"),
        ("x", "user", "x"),
        ("", "user", ""),
        ({"role": "user", "content": "x"}, "user", "x"),
        ({"type": "human", "content": "x"}, "user", "x"),
        (
            {"type": "ai", "content": BLOCKS},
            "assistant",
            [TEXT_A, {"type": "text", "text": "b\n"}, {**TEXT_A, "text": "c"}],
        ),
        (
            {"role": "assistant", "type": "message", "content": ["a", "b"]},
            "assistant",
            [TEXT_A, {**TEXT_A, "text": "b"}],
        ),
        ({"role": "user", "content": [SimpleNamespace(type="text", text="a")]}, "user", "a"),
        ({"role": "user", "content": [{"type": "input_text", "text": "a"}]}, "user", "a"),
        ({"role": "assistant", "content": "x", "tool_calls": [], "audio": None}, "assistant", "x"),
        (SimpleNamespace(type="human", content="x"), "user", "x"),
        (SimpleNamespace(type="system", content=tuple(BLOCKS)), "system", "a\n\nb\n\n\nc"),
        (SimpleNamespace(type="chat", role="user", content="x"), "user", "x"),
        (MappingProxyType({"role": "user", "content": "x"}), "user", "x"),
    ],
)
def test_foreign_messages_are_understood(message: Any, role: str, content: Any) -> None:
    understood = coerce(message)
    assert isinstance(understood, Message)
    assert (understood.role, understood.content) == (role, content)


@pytest.mark.parametrize(
    "message",
    [
        None,
        5,
        b"x",
        [],
        ["user", "x"],
        {},
        {"role": "user"},
        {"content": "x"},
        {"role": "king", "content": "x"},
        {"role": ["user"], "content": "x"},
        {"role": "user", "content": None},
        {"role": "user", "content": 5},
        {"role": "user", "content": b"x"},
        {"role": "user", "content": {"text": "x"}},
        {"role": "user", "content": []},
        SimpleNamespace(type="human"),
        SimpleNamespace(content="x"),
        object(),
    ],
)
def test_invalid_messages_are_refused(message: Any) -> None:
    with pytest.raises(InvalidInput, match="A message must have a role"):
        coerce(message)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        *(
            (
                {"role": "user", "content": [{"type": "text", "text": "What is this?"}, {"type": kind}]},
                f"messages[1].content[1]: blocks of type '{kind}' are not supported here.",
            )
            for kind in ("container_upload", "tool_use", "thinking", "input_audio", "video", "refusal")
        ),
        (
            {
                "role": "assistant",
                "content": ["x", {"type": "image", "source": {"type": "url", "url": "https://x.org"}}],
            },
            "messages[1].content[1]: blocks of type 'image' are not supported here.",
        ),
        ({"role": "user", "content": ["x", {"text": 5}]}, "messages[1].content[1].text: it must be text."),
        ({"role": "user", "content": ["x", None]}, "messages[1].content[1]: blocks without a type are not"),
        ({"role": "user", "content": [{"type": ["text"], "text": "x"}]}, "blocks of type \"['text']\" are not"),
        ({"role": "tool", "content": "x"}, "messages[1]: messages of role 'tool' are not supported yet."),
        ({"type": "tool", "content": "x"}, "messages[1]: messages of role 'tool' are not supported yet."),
        (Message(role="tool", content="x"), "messages[1]: messages of role 'tool' are not supported yet."),
        (
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
            "messages[1].tool_calls: messages with tool_calls are not supported yet.",
        ),
        ({"role": "assistant", "content": "x", "function_call": {"name": "f"}}, "messages[1].function_call: "),
        ({"role": "assistant", "content": "x", "refusal": "No."}, "messages[1].refusal: "),
        (
            {"type": "ai", "content": "x", "additional_kwargs": {"reasoning_content": "Hm."}},
            "messages[1].additional_kwargs.reasoning_content: ",
        ),
        ({"role": "user", "content": "x", "images": ["aGk="]}, "messages[1].images: "),
        ({"role": "user", "content": "x", "attachments": [{"file_id": "f"}]}, "messages[1].attachments: "),
        (
            {"type": "ai", "content": "x", "additional_kwargs": {"function_call": {"name": "f"}}},
            "messages[1].additional_kwargs.function_call: messages with function_call are not supported yet.",
        ),
        (
            SimpleNamespace(type="ai", content="x", additional_kwargs={"tool_calls": [{"id": "1"}]}),
            "messages[1].additional_kwargs.tool_calls: ",
        ),
        (
            {"role": "user", "content": [{"text": "x"}, {"text": "x", "source": {"bytes": "aGk="}}]},
            "messages[1].content[1]: blocks without a type are not supported here.",
        ),
        (
            {"role": "user", "content": [{"image": {"source": {"bytes": "aGk="}}}]},
            "messages[1].content[0]: blocks without a type are not supported here.",
        ),
    ],
)
def test_non_text_content_is_refused_with_type_and_index(message: Any, said: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        coerce_all(["Hello", message])
    assert said in refused.value.message
    assert refused.value.detail["path"].startswith("messages[1]")


def test_last_text_is_the_last_human_message() -> None:
    assert last_text([HumanMessage(content="a"), HumanMessage(content="b"), AIMessage(content="c")]) == "b"
    assert last_text([SystemMessage(content="a")]) == ""


SAID = [SystemMessage(content="s"), HumanMessage(content='{"a": 1}')]
TEXT = {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (None, {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": '{"a": 1}'}]}),
        ({"properties": {"query": TEXT}, "required": ["query"]}, {"query": '{"a": 1}'}),
        ({"properties": {"query": TEXT, "limit": {"type": "integer"}}, "required": ["query"]}, {"query": '{"a": 1}'}),
        ({"properties": {"only": {}}, "additionalProperties": False}, {"only": '{"a": 1}'}),
        ({"properties": {"only": True}, "required": ["only"]}, {"only": '{"a": 1}'}),
        ({"properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"a": 1}),
        ({"properties": {"a": True, "b": True}, "required": ["a"]}, {"a": 1}),
    ],
)
def test_messages_become_the_input_that_fits_the_schema(schema: dict[str, Any] | None, value: Any) -> None:
    assert input_for(schema, SAID, agent="A") == value


@pytest.mark.parametrize(
    "said", ["{", "NaN", "[" * 5000, "1" * 5000, '{"a": 1, "a": 2}', "", "\\ud800", '{"a": 1e999}']
)
@pytest.mark.parametrize(
    "schema", [{"properties": {"a": {"type": "number"}}, "required": ["a"]}, {"type": "number"}, False]
)
def test_text_that_fits_no_schema_is_refused(said: str, schema: Any) -> None:
    schema = schema if schema is not False else {"not": {}}
    with pytest.raises(InvalidInput, match="cannot be turned into the input of 'A'"):
        input_for(schema, [HumanMessage(content=said)], agent="A")


def test_input_takes_precedence_over_messages_and_is_checked() -> None:
    assert checked_input({"type": "integer"}, 5, SAID, agent="A") == 5
    with pytest.raises(InvalidInput, match="The input of 'A' does not match its schema"):
        checked_input({"type": "integer"}, "x", SAID, agent="A")
    with pytest.raises(InvalidInput, match="The input of 'A' does not match its schema"):
        checked_input({"type": "integer"}, None, None, agent="A")
