"""Server-sent events: any chunks, any line ends, and never more than the limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.mcp.sse import EventTooLarge, events

STREAM = [
    (b"data: a", b""),
    (b": comment", b"data:b", b"data: c", b"id: 1", b"retry: 5", b""),
    (b"event: ping", b"data: left out", b""),
    (b"event: message", b"data:  d", b""),
    (b"data", b""),
    (b"",),
    (b"data: unfinished",),
]
EXPECTED = [b"a", b"b\nc", b" d"]


@given(st.sampled_from([b"\n", b"\r\n", b"\r"]), st.lists(st.integers(1, 12)))
def test_events_do_not_depend_on_chunks(end: bytes, sizes: list[int]) -> None:
    text = b"".join(line + end for event in STREAM for line in event)
    chunks, at = [], 0
    for size in sizes:
        chunks.append(text[at : at + size])
        at += size
    assert list(events([*chunks, text[at:]], 100)) == EXPECTED


@pytest.mark.parametrize("chunks", [[b"x" * 101], [b"data: " + b"x" * 60 + b"\n"] * 2, [b"x"] * 101])
def test_large_event_is_refused(chunks: list[bytes]) -> None:
    with pytest.raises(EventTooLarge):
        list(events(chunks, 100))


def test_comments_count_to_no_event() -> None:
    assert list(events([b": keep alive\n" * 50, b"data: a\n\n"], 100)) == [b"a"]


@given(st.lists(st.binary(max_size=30), max_size=30))
def test_any_bytes_are_read(chunks: list[bytes]) -> None:
    assert all(isinstance(event, bytes) for event in events(chunks, 10_000))
