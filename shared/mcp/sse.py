"""Server-sent events of a peer that may be hostile: one event at a time, and never more of it than a limit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# The CR at the end of a chunk may be half of a CRLF.
LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")


class EventTooLarge(Exception):
    """An event has more bytes than the limit."""


def events(chunks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    """Yield the data of each `message` event. Comments, ids and other events are left out, and so are empty events.

    Args:
        limit: bytes of an event, with the names of its fields. It also bounds the memory for a line that has no end.

    Raises:
        EventTooLarge: an event has more.
    """
    kind, data, size = b"", [], 0
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
            continue
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
