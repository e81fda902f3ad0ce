"""Streams in the format of the API and of gateways in front of it."""

from __future__ import annotations

from typing import Any

import pytest

from minions.testing import events_of
from workers.llm.stream import StreamError, assemble

START = {"type": "message_start", "message": {"role": "assistant", "model": "m", "usage": {"input_tokens": 9}}}
END = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}}
STOP = {"type": "message_stop"}


def block_start(block: dict[str, Any], index: int = 0) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def block_delta(index: int = 0, **delta: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": delta}


def blocks(*events: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the content of a message with these events."""
    message = assemble([START, *events, END], lambda text: None)
    assert message is not None
    return list(message["content"])


def test_streamed_message_is_reassembled() -> None:
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


def test_interleaved_blocks_are_assembled() -> None:
    assert blocks(
        block_start({"type": "text", "text": "a"}, 0),
        block_start({"type": "text", "text": "x"}, 1),
        block_delta(1, type="text_delta", text="y"),
        block_delta(0, type="text_delta", text="b"),
    ) == [{"type": "text", "text": "ab"}, {"type": "text", "text": "xy"}]


def test_gateway_may_omit_empty_fields() -> None:
    assert blocks(
        block_start({"type": "text"}),
        block_delta(type="text_delta", text="Hi"),
        block_start({"type": "tool_use", "id": "t", "name": "n"}, 1),
        block_delta(1, type="input_json_delta"),
        block_delta(1, type="input_json_delta", partial_json='{"a": 1}'),
    ) == [{"type": "text", "text": "Hi"}, {"type": "tool_use", "id": "t", "name": "n", "input": {"a": 1}}]


def test_unknown_kinds_of_blocks_are_assembled() -> None:
    citation = {"type": "char_location", "cited_text": "x"}
    assert blocks(
        block_start({"type": "mcp_tool_use", "name": "n", "input": {}, "server_name": "s"}),
        block_delta(type="input_json_delta", partial_json='{"q":'),
        block_delta(type="input_json_delta", partial_json=" 1}"),
        block_start({"type": "text", "text": "", "citations": []}, 1),
        block_delta(1, type="citations_delta", citation=citation),
        block_delta(1, type="citations_delta", citation=citation),
        block_start({"type": "of_next_year", "content": None}, 2),
        block_delta(2, type="next_delta", content="whole"),
        {"type": "of_next_year"},
    ) == [
        {"type": "mcp_tool_use", "name": "n", "input": {"q": 1}, "server_name": "s"},
        {"type": "text", "text": "", "citations": [citation, citation]},
        {"type": "of_next_year", "content": "whole"},
    ]


@pytest.mark.parametrize("said", ['{"a": 1', '{"a": NaN}', '{"a": "\\u0000"}', '{"a": 1, "a": 2}'])
def test_invalid_json_input_is_kept_as_invalid(said: str) -> None:
    tool = {"type": "tool_use", "id": "t", "name": "n", "input": {}}
    assert blocks(block_start(tool), block_delta(type="input_json_delta", partial_json=said)) == [
        {**tool, "input": {"INVALID_JSON": said}}
    ]


def test_last_usage_counts() -> None:
    message = assemble(
        [START, {**END, "usage": {"output_tokens": 7, "input_tokens": None, "cache_read_input_tokens": 3}}], print
    )
    assert message is not None
    assert message["usage"] == {"input_tokens": 9, "output_tokens": 7, "cache_read_input_tokens": 3}


@pytest.mark.parametrize(
    "events",
    [[], [STOP], [START], [START, STOP], [START, block_start({"type": "text", "text": "Hi"})], [{"type": "ping"}]],
)
def test_incomplete_message_is_none(events: list[dict[str, Any]]) -> None:
    assert assemble(events, print) is None


def test_message_that_stops_without_a_reason_is_complete() -> None:
    without_reason = {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 7}}
    message = assemble([START, block_start({"type": "text", "text": "Hi"}), without_reason, STOP], print)
    assert message is not None
    assert (message["content"], message.get("stop_reason")) == ([{"type": "text", "text": "Hi"}], None)
    assert message["usage"] == {"input_tokens": 9, "output_tokens": 7}


def test_message_that_begins_with_its_stop_reason_is_complete() -> None:
    start = {"type": "message_start", "message": {**START["message"], "stop_reason": "tool_use", "content": []}}
    assert assemble([start, STOP], print) is not None


def test_error_within_a_stream_is_raised() -> None:
    with pytest.raises(StreamError, match="Overloaded") as caught:
        blocks({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
    assert caught.value.kind == "overloaded_error"


def test_recorded_message_survives_streaming() -> None:
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
