"""Messages between the main process and the lane: lines of JSON on a socket pair.

To the lane:     run KEY MESSAGE LIMITS, interrupt KEY, kill KEY, drain, answer CALL REPLY
From the lane:   ready, ended KEY REPORT, killed KEY WHY CHARGED AT-LIMIT, call CALL KEY REQUEST, stop CALL
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def line(*words: Any) -> bytes:
    """Return one message."""
    return json.dumps(words, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass") + b"\n"


class Lines:
    """Puts the parts that arrive together into messages."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []

    def feed(self, part: bytes) -> Iterator[list[Any]]:
        """Yield the messages that this part completes."""
        *complete, rest = part.split(b"\n")
        for end in complete:
            whole = b"".join([*self._rest, end])
            self._rest.clear()
            yield json.loads(whole.decode("utf-8", "surrogatepass"))
        if rest:
            self._rest.append(rest)
