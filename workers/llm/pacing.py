"""Pauses between the events of a stream: to wake up for an event costs more than to read it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

LONGEST_PAUSE = 0.05
SHORTEST_PAUSE = 0.01
PART_OF_STREAM = 0.5
"""Part of a stream's time so far that a pause may take."""
WAITED = 0.001
"""Seconds after which an event was not there yet when it was asked for."""
Event = TypeVar("Event")


def paced(received: Iterable[Event], may_pause_after: Callable[[Event], bool]) -> Iterator[Event]:
    """Yield events as they arrive, several at a time.

    After an event that it had to wait for, it pauses for 50 ms at most, and less at the beginning of a stream. If
    events are further apart than that, it does not pause.

    Args:
        may_pause_after: whether more events follow in any case, so that no pause delays the end.
    """
    began = looked = time.monotonic()
    for event in received:
        arrived = time.monotonic()
        yield event
        pause = min(LONGEST_PAUSE, (arrived - began) * PART_OF_STREAM)
        if WAITED <= arrived - looked < pause and pause >= SHORTEST_PAUSE and may_pause_after(event):
            time.sleep(pause)
        looked = time.monotonic()
