"""Server-sent events of a peer that may be hostile: one event at a time, and never more of it than a limit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# What a header can hold.
ID = re.compile(rb"[\x21-\x7e]{0,1000}")
MILLISECONDS = re.compile(rb"[0-9]{1,9}")
# The CR at the end of a chunk may be half of a CRLF.
LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")


@dataclass(slots=True)
class Position:
    """How far a stream was read, to continue it.

    Attributes:
        id: of the last event; empty: events have none.
        retry: seconds that the server asks for, before the stream is continued.
    """

    id: str = ""
    retry: float = 1.0


class EventTooLarge(Exception):
    """An event has more bytes than the limit."""


def events(chunks: Iterable[bytes], limit: int, position: Position | None = None) -> Iterator[bytes]:
    """Yield the data of each `message` event. Comments and other events are left out, and so are empty events.

    Args:
        limit: bytes of an event, with the names of its fields. It also bounds the memory for a line that has no end.
        position: updated with each event.

    Raises:
        EventTooLarge: an event has more.
    """
    kind, data, size = b"", [], 0
    position = position or Position()
    id = position.id
    for line in _lines(chunks, limit):
        if line.startswith(b":"):
            continue
        size += len(line)
        if size > limit:
            raise EventTooLarge
        if line:
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data":
                data.append(value)
            elif name == b"event":
                kind = value
            elif name == b"id" and ID.fullmatch(value):
                id = value.decode()
            elif name == b"retry" and MILLISECONDS.fullmatch(value):
                position.retry = int(value) / 1000
            continue
        position.id = id
        if data != [] and kind in (b"", b"message") and (text := b"\n".join(data)):
            yield text
        kind, data, size = b"", [], 0


def _lines(chunks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    rest = bytearray()
    for chunk in chunks:
        # A long line is searched once, not with each chunk.
        searched = max(0, len(rest) - 1)
        rest += chunk
        begin = 0
        for end in LINE_END.finditer(rest, searched):
            yield bytes(rest[begin : end.start()])
            begin = end.end()
        del rest[:begin]
        if len(rest) > limit:
            raise EventTooLarge
