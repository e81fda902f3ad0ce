"""The offline planner: deterministic, chooses tools by their descriptions, never poses as a language model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.errors import ModelError
from workers.llm.base import ModelReply, ModelRequest, ToolSpec
from workers.llm.offline import NOTICE, OfflinePlanner

TEXT = {"type": "object", "required": ["query"], "properties": {"query": {"type": "string"}}}
SEARCH = ToolSpec("search_documents", "Searches documents for a query", TEXT)
MAIL = ToolSpec(
    "send_mail",
    "Sends a mail to an address",
    {
        "type": "object",
        "required": ["address", "body"],
        "properties": {"address": {"type": "string"}, "body": {"type": "string"}},
    },
)
COUNT = ToolSpec(
    "count_words",
    "Counts the words of a text",
    {
        "type": "object",
        "required": ["text", "limit"],
        "properties": {"text": {"type": "string"}, "limit": {"type": "integer"}},
    },
)


def request(said: str, *tools: ToolSpec, messages: Any = (), **fields: Any) -> ModelRequest:
    said_first = [{"role": "user", "content": said}]
    values = {"model": "offline", "system": "", "max_tokens": 100, **fields}
    return ModelRequest(messages=[*said_first, *messages], tools=tools, **values)


def plan(*args: Any, **fields: Any) -> ModelReply:
    return OfflinePlanner().complete(request(*args, **fields), print)


def after(reply: ModelReply, *results: Any) -> list[dict[str, Any]]:
    """Return the messages that follow a reply with tool calls."""
    calls = [block for block in reply.content if block["type"] == "tool_use"]
    answers = [
        {"type": "tool_result", "tool_use_id": call["id"], "content": json.dumps(result)}
        for call, result in zip(calls, results, strict=True)
    ]
    return [{"role": "assistant", "content": reply.content}, {"role": "user", "content": answers}]


def test_reply_states_that_it_is_no_language_model() -> None:
    assert plan("Hello").content[0]["text"].startswith(NOTICE)
    assert "not a language model" in NOTICE


def test_same_request_gives_the_same_reply() -> None:
    replies = [plan("Search for red boats", SEARCH, MAIL, COUNT) for _ in range(3)]
    assert replies[0] == replies[1] == replies[2]


@pytest.mark.parametrize(
    ("said", "tool"),
    [
        ("Search documents for boats", "search_documents"),
        ("please count words", "count_words"),
        ("mail this", "send_mail"),
    ],
)
def test_tool_with_the_matching_description_is_called(said: str, tool: str) -> None:
    facts = {"text": "a b", "limit": 3, "address": "a@example.org", "body": "b"}
    [call] = plan(said, SEARCH, MAIL, COUNT, input=facts).content
    assert (call["type"], call["name"]) == ("tool_use", tool)


def test_order_of_tools_does_not_matter() -> None:
    assert plan("Search documents", SEARCH, COUNT).content == plan("Search documents", COUNT, SEARCH).content


def test_arguments_are_filled_from_the_input() -> None:
    [call] = plan("Count words", COUNT, input={"text": "a b", "limit": 3, "more": 1}).content
    assert call["input"] == {"text": "a b", "limit": 3}


def test_one_missing_text_argument_is_filled_with_the_request() -> None:
    [call] = plan("Search for red boats", SEARCH).content
    assert call["input"] == {"query": "red boats"}


def test_arguments_are_not_invented() -> None:
    reply = plan("Count words of this", COUNT)
    assert reply.stop_reason == "end_turn"
    assert "No tool of this agent fits" in reply.content[0]["text"]


def test_arguments_of_the_wrong_type_are_not_used() -> None:
    assert plan("Count words", COUNT, input={"text": "a", "limit": "many"}).stop_reason == "end_turn"


def test_result_of_one_tool_is_argument_of_another() -> None:
    first = plan("Search documents and count words", SEARCH, COUNT)
    messages = after(first, {"text": "found", "limit": 2})
    [call] = plan("Search documents and count words", SEARCH, COUNT, messages=messages).content
    assert (call["name"], call["input"]) == ("count_words", {"text": "found", "limit": 2})


def test_tool_is_called_once_and_its_result_is_reported() -> None:
    first = plan("Search documents", SEARCH)
    last = plan("Search documents", SEARCH, messages=after(first, {"found": ["é"]}))
    assert last.stop_reason == "end_turn"
    assert 'search_documents returned {"found": ["é"]}' in last.content[0]["text"]


def test_result_that_matches_the_output_schema_is_the_answer() -> None:
    schema = {"type": "object", "required": ["found"], "properties": {"found": {"type": "array"}}}
    first = plan("Search documents", SEARCH, output_schema=schema)
    last = plan("Search documents", SEARCH, output_schema=schema, messages=after(first, {"found": [1]}))
    assert json.loads(last.content[0]["text"]) == {"found": [1]}


def test_required_text_in_the_output_is_a_summary() -> None:
    schema = {"type": "object", "required": ["summary"], "properties": {"summary": {"type": "string"}}}
    answer = json.loads(plan("Hello", output_schema=schema).content[0]["text"])
    assert answer["summary"].startswith(NOTICE)


def test_numbers_are_not_invented() -> None:
    schema = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
    with pytest.raises(ModelError, match="cannot make up an answer"):
        plan("Hello", output_schema=schema)


@pytest.mark.parametrize("said", ["", " ", "the of and", "日本語", "x" * 100_000, "a(b[c*"])
def test_any_text_is_accepted(said: str) -> None:
    assert plan(said, SEARCH, MAIL, COUNT).stop_reason in ("end_turn", "tool_use")


def test_tools_without_a_schema_are_callable() -> None:
    [call] = plan("refresh everything", ToolSpec("refresh", "", {"type": "object"})).content
    assert call["input"] == {}
