"""Messages assembled from streams are those that Anthropic's SDK assembles, for generated streams."""

from __future__ import annotations

import json
from typing import Any

from anthropic.lib.streaming._messages import accumulate_event
from hypothesis import given
from hypothesis import strategies as st

from workers.llm.stream import assemble

Event = dict[str, Any]

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = st.from_regex(r"[a-z]{1,8}", fullmatch=True)
SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9).map(lambda x: round(x, 3))
# Arguments with U+0000 are faulty for us, not for the SDK: PostgreSQL cannot store them.
STORABLE = TEXTS.filter(lambda text: "\0" not in text)
JSON = st.recursive(
    SCALARS | STORABLE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
COUNTS = st.integers(0, 10**6)
CACHED_TOKENS = st.dictionaries(
    st.sampled_from(["cache_read_input_tokens", "cache_creation_input_tokens"]), COUNTS, max_size=2
)
CITATION = st.fixed_dictionaries(
    {
        "type": st.just("char_location"),
        "cited_text": TEXTS,
        "document_index": COUNTS,
        "document_title": st.none() | TEXTS,
        "start_char_index": COUNTS,
        "end_char_index": COUNTS,
    }
)


@st.composite
def pieces(draw: st.DrawFn, text: str) -> list[str]:
    """Cut a text at any places; pieces may be empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    return [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@st.composite
def text_blocks(draw: st.DrawFn) -> tuple[Event, list[Event]]:
    begun = {"type": "text", "text": draw(st.just("") | TEXTS), **draw(st.sampled_from([{}, {"citations": None}]))}
    deltas = [{"type": "text_delta", "text": piece} for piece in draw(pieces(draw(TEXTS)))]
    cited = [{"type": "citations_delta", "citation": citation} for citation in draw(st.lists(CITATION, max_size=2))]
    return begun, draw(st.permutations([*deltas, *cited]))


@st.composite
def thinking_blocks(draw: st.DrawFn) -> tuple[Event, list[Event]]:
    deltas = [{"type": "thinking_delta", "thinking": piece} for piece in draw(pieces(draw(TEXTS)))]
    signature = {"type": "signature_delta", "signature": draw(NAMES)}
    return {"type": "thinking", "thinking": "", "signature": ""}, [*deltas, signature]


@st.composite
def tool_blocks(draw: st.DrawFn) -> tuple[Event, list[Event]]:
    kind = draw(st.sampled_from(["tool_use", "server_tool_use"]))
    written = draw(st.just("") | st.dictionaries(NAMES, JSON, max_size=4).map(json.dumps))
    deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in draw(pieces(written))]
    return {"type": kind, "id": draw(NAMES), "name": draw(NAMES), "input": {}}, deltas


WHOLE_BLOCKS = st.sampled_from(
    [
        {"type": "redacted_thinking", "data": "ZW5j"},
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
        {"type": "of_next_year", "inside": {"a": [None, 1]}},
    ]
).map(lambda block: (block, []))
BLOCKS = text_blocks() | thinking_blocks() | tool_blocks() | WHOLE_BLOCKS
NOISE = st.sampled_from([{"type": "ping"}, {"type": "of_next_year", "note": {"a": 1}}])


@st.composite
def streams(draw: st.DrawFn) -> list[Event]:
    """Generate the events of a message: blocks begin in order, and the deltas of open blocks are mixed."""
    usage = {"input_tokens": draw(COUNTS), "output_tokens": 1, **draw(CACHED_TOKENS)}
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": draw(NAMES),
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
        **draw(st.dictionaries(NAMES.map(lambda name: f"x_{name}"), JSON, max_size=2)),
    }
    events: list[Event] = [{"type": "message_start", "message": message}]
    open_deltas: list[list[Event]] = []
    for index, (begun, deltas) in enumerate(draw(st.lists(BLOCKS, max_size=4))):
        events.append({"type": "content_block_start", "index": index, "content_block": begun})
        open_deltas.append([{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas])
        for _ in range(draw(st.integers(0, 6))):
            events += _take_one(draw, open_deltas)
    while any(open_deltas):
        events += _take_one(draw, open_deltas)
    stop = {"stop_reason": draw(st.sampled_from(["end_turn", "tool_use"])), "stop_sequence": None, "stop_details": None}
    spent = {"output_tokens": draw(COUNTS), **draw(CACHED_TOKENS)}
    events += [{"type": "message_delta", "delta": stop, "usage": spent}, {"type": "message_stop"}]
    for place in draw(st.lists(st.integers(1, len(events)), max_size=3)):
        events.insert(place, draw(NOISE))
    return events


def _take_one(draw: st.DrawFn, open_deltas: list[list[Event]]) -> list[Event]:
    """Take the next delta of one of the blocks that have some left."""
    waiting = [deltas for deltas in open_deltas if deltas]
    return [draw(st.sampled_from(waiting)).pop(0)] if waiting else []


def by_sdk(events: list[Event]) -> Event:
    """Assemble a message with the SDK, which takes only events that it knows."""
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    for event in events:
        if event["type"] not in ("ping", "of_next_year"):
            snapshot = accumulate_event(event=event, current_snapshot=snapshot, json_bufs=buffers)  # type: ignore[arg-type]
    return dict(snapshot.to_dict(warnings=False))


@given(streams())
def test_message_is_the_one_that_the_sdk_assembles(events: list[Event]) -> None:
    texts: list[str] = []
    message = assemble(events, texts.append)
    assert message is not None
    assert without_nulls(message) == without_nulls(by_sdk(events))
    blocks = [block["text"] for block in message["content"] if block["type"] == "text"]
    assert sorted("".join(texts)) == sorted("".join(blocks))


def without_nulls(message: Event) -> Event:
    """Leave out fields without a value at the places where the SDK adds them."""
    content = [_filled(block) for block in message["content"]]
    return {**_filled(message), "content": content, "usage": _filled(message["usage"])}


def _filled(fields: Event) -> Event:
    return {name: value for name, value in fields.items() if value is not None}
