"""Streams, as the API and gateways before it send them."""

from __future__ import annotations

from typing import Any

import pytest

from minions.testing import events_of
from workers.llm.stream import StreamError, assemble

START = {"type": "message_start", "message": {"role": "assistant", "model": "m", "usage": {"input_tokens": 9}}}
END = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}}


def begun(block: dict[str, Any], index: int = 0) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def more(index: int = 0, **delta: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": delta}


def blocks(*events: dict[str, Any]) -> list[dict[str, Any]]:
    """The content of a message with these events."""
    message = assemble([START, *events, END], lambda text: None)
    assert message is not None
    return list(message["content"])


def test_a_message_is_what_it_was_before_it_was_streamed() -> None:
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 9},
        "content": [
            {"type": "thinking", "thinking": "Well …", "signature": "c2ln"},
            {"type": "text", "text": "One, two, three"},
            {"type": "tool_use", "id": "t", "name": "n", "input": {"a": [None, {"b": 1.5}], "n": 10**30}},
            {"type": "tool_use", "id": "t2", "name": "n", "input": {}},
        ],
    }
    said: list[str] = []
    joined = assemble([{"type": name, **data} for name, data in events_of(message)], said.append)
    assert joined == message
    assert "".join(said) == "One, two, three"
    assert len(said) > 1


def test_blocks_may_grow_side_by_side() -> None:
    assert blocks(
        begun({"type": "text", "text": "a"}, 0),
        begun({"type": "text", "text": "x"}, 1),
        more(1, type="text_delta", text="y"),
        more(0, type="text_delta", text="b"),
    ) == [{"type": "text", "text": "ab"}, {"type": "text", "text": "xy"}]


def test_a_gateway_may_leave_out_what_is_empty() -> None:
    assert blocks(
        begun({"type": "text"}),
        more(type="text_delta", text="Hi"),
        begun({"type": "tool_use", "id": "t", "name": "n"}, 1),
        more(1, type="input_json_delta"),
        more(1, type="input_json_delta", partial_json='{"a": 1}'),
    ) == [{"type": "text", "text": "Hi"}, {"type": "tool_use", "id": "t", "name": "n", "input": {"a": 1}}]


def test_kinds_that_nobody_knew_are_joined_too() -> None:
    citation = {"type": "char_location", "cited_text": "x"}
    assert blocks(
        begun({"type": "mcp_tool_use", "name": "n", "input": {}, "server_name": "s"}),
        more(type="input_json_delta", partial_json='{"q":'),
        more(type="input_json_delta", partial_json=" 1}"),
        begun({"type": "text", "text": "", "citations": []}, 1),
        more(1, type="citations_delta", citation=citation),
        more(1, type="citations_delta", citation=citation),
        begun({"type": "of_next_year", "content": None}, 2),
        more(2, type="next_delta", content="whole"),
        {"type": "of_next_year"},
    ) == [
        {"type": "mcp_tool_use", "name": "n", "input": {"q": 1}, "server_name": "s"},
        {"type": "text", "text": "", "citations": [citation, citation]},
        {"type": "of_next_year", "content": "whole"},
    ]


@pytest.mark.parametrize("said", ['{"a": 1', '{"a": NaN}', '{"a": "\\u0000"}', '{"a": 1, "a": 2}'])
def test_an_input_that_is_no_json_is_none_that_a_tool_takes(said: str) -> None:
    tool = {"type": "tool_use", "id": "t", "name": "n", "input": {}}
    assert blocks(begun(tool), more(type="input_json_delta", partial_json=said)) == [
        {**tool, "input": {"INVALID_JSON": said}}
    ]


def test_usage_is_told_twice_and_the_last_counts() -> None:
    message = assemble(
        [START, {**END, "usage": {"output_tokens": 7, "input_tokens": None, "cache_read_input_tokens": 3}}], print
    )
    assert message is not None
    assert message["usage"] == {"input_tokens": 9, "output_tokens": 7, "cache_read_input_tokens": 3}


@pytest.mark.parametrize("events", [[], [START], [START, begun({"type": "text", "text": "Hi"})], [{"type": "ping"}]])
def test_half_a_message_is_none(events: list[dict[str, Any]]) -> None:
    assert assemble(events, print) is None


def test_an_error_in_the_middle() -> None:
    with pytest.raises(StreamError, match="Overloaded") as caught:
        blocks({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
    assert caught.value.kind == "overloaded_error"


def test_a_recorded_message_goes_out_and_comes_in_as_it_was() -> None:
    recorded = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "container": {"id": "c"},
        "usage": {"input_tokens": 1, "output_tokens": 9, "iterations": [{"type": "message"}]},
    }
    for message in (recorded, {**recorded, "usage": {}}):
        assert assemble([{"type": name, **data} for name, data in events_of(message)], print) == message
    assert assemble([{"type": name, **data} for name, data in events_of({**recorded, "usage": None})], print) == {
        **recorded,
        "usage": {},
    }
