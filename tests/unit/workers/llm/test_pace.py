"""Reading a stream: several events at a time, without a delay at its end."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from workers.llm import anthropic, pacing

DELTA, STOP = "content_block_delta", "content_block_stop"


class Clock:
    """A clock on which only waiting takes time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pacing, "time", clock)
    return clock


def received(clock: Clock, *events: tuple[float, str]) -> Iterator[Any]:
    """Yield events, each at its time or later."""
    for at, kind in events:
        clock.now = max(clock.now, at)
        yield SimpleNamespace(event=kind, data="{}", json=dict)


def test_events_are_read_several_at_a_time(clock: Clock) -> None:
    slow = [(0.01 * number, DELTA) for number in range(100)]
    kinds = [event["type"] for event in anthropic._events(received(clock, *slow))]
    assert kinds == [DELTA] * 100
    assert 10 < len(clock.pauses) < 30
    assert max(clock.pauses) == pacing.LONGEST_PAUSE


def test_stream_slower_than_the_pauses_is_read_without_pauses(clock: Clock) -> None:
    slow = [(2 * pacing.LONGEST_PAUSE * number, DELTA) for number in range(1, 100)]
    assert len(list(anthropic._events(received(clock, *slow)))) == 99
    assert not clock.pauses


def test_stream_that_arrives_at_once_is_read_without_pauses(clock: Clock) -> None:
    assert len(list(anthropic._events(received(clock, *[(0.5, DELTA)] * 100)))) == 100
    assert len(clock.pauses) <= 1


def test_end_of_a_stream_is_read_without_a_pause(clock: Clock) -> None:
    ended = [(1.0, STOP), (1.5, "message_delta"), (2.0, "message_stop")]
    list(anthropic._events(received(clock, *ended)))
    assert not clock.pauses


def test_event_is_passed_on_before_the_pause(clock: Clock) -> None:
    events = anthropic._events(received(clock, (1.0, DELTA), (1.0, DELTA)))
    assert next(events)["type"] == DELTA
    assert clock.now == 1.0
