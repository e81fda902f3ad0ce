"""Messages between the main process and the lane, and what the main process does with unexpected ones."""

from __future__ import annotations

import json
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from workers.lane import host
from workers.lane.autoscaler import Autoscaler
from workers.lane.host import Child, Lane
from workers.lane.pulse import Pulse
from workers.lane.wire import Lines, line


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_messages_arrive_whole_however_they_are_cut(size: int) -> None:
    sent = [["ended", 1, "new\nline"], ["answer", 2, "\ud800é"], ["call", 3, 4, "x" * 3000]]
    data = b"".join(line(*message) for message in sent)
    lines = Lines()
    assert [each for at in range(0, len(data), size) for each in lines.feed(data[at : at + size])] == sent


def test_pulse_is_read_by_another_holder_of_its_memory() -> None:
    writer = Pulse.create()
    reader = Pulse(writer.file)
    assert reader.read() == (0.0, 0)
    writer.tick(2.5)
    writer.switch(7)
    assert reader.read() == (2.5, 7)


class Unborn(Child):
    """A child without a process."""

    def __init__(self, link: socket.socket) -> None:
        self.link, self.closed, self.ready = link, False, True
        self._lines = Lines()
        self.sent: list[Any] = []
        self.process: Any = SimpleNamespace(pid=1, returncode=-9)

    def send(self, *words: Any) -> None:
        self.sent.append([*words])

    def close(self) -> int:
        self.link.close()
        return 2


@pytest.fixture
def lane() -> Any:
    """A lane without a process, and `theirs`, the other end of its socket."""
    pool = SimpleNamespace(_pool=SimpleNamespace(_fileno_to_outq={}))
    lane: Any = Lane(SimpleNamespace(hub=SimpleNamespace(remove=lambda fd: None, readers={}), pool=pool))
    ours, lane.theirs = socket.socketpair()
    lane.child = Unborn(ours)
    yield lane
    lane.theirs.close()
    ours.close()


def test_messages_about_tasks_that_have_ended_are_ignored(lane: Any) -> None:
    lane.theirs.sendall(
        line("ended", 1, "null") + line("killed", 1, "why", True, False) + line("stop", 1) + line("call", 5, 1, "{}")
    )
    lane.read()
    assert lane.child.sent == [["answer", 5, '{"handed_back": true}']]


def test_message_that_cannot_be_handled_does_not_keep_the_next_from_being_handled(lane: Any) -> None:
    lane.requests[1] = SimpleNamespace()
    ended: list[Any] = []
    lane.requests[2] = SimpleNamespace(on_success=ended.append, time_start=0.0)
    lane.theirs.sendall(line("ended", 1, "null") + line("no such word") + line("ended", 2, "null"))
    lane.read()
    assert len(ended) == 1


@pytest.mark.parametrize("rest", [b"", b'["ended",2'])
def test_lane_that_dies_with_messages_unread_still_reports_what_it_said(lane: Any, rest: bytes) -> None:
    lost: list[Any] = []
    for key in (2, 3):
        lane.requests[key] = SimpleNamespace(on_lost=lambda why, key=key, **how: lost.append((key, how["charged"])))
    ended: list[Any] = []
    lane.requests[1] = SimpleNamespace(on_success=ended.append, time_start=0.0)
    lane.child.link.sendall(line("interrupt", 1))
    lane.theirs.sendall(line("ended", 1, "null") + rest)
    lane.theirs.close()
    lane.read()
    assert len(ended) == 1
    assert lost == [(2, True), (3, False)]
    assert lane.child is None


def test_draining_lane_hands_back_calls_that_no_slot_may_make(lane: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "LAST_RESULTS_SECONDS", 0.0)
    jobs = [None, SimpleNamespace(_write_to=None), SimpleNamespace(_write_to="slot"), SimpleNamespace(_write_to="slot")]
    for number, job in enumerate(jobs):
        lane.calls[number] = host.Call(number, 1, "{}", 0.0, job, accepted=number == 3)
    lane.drain()
    replies = {number: json.loads(reply) for _, number, reply in lane.child.sent[1:]}
    assert replies.keys() == {0, 1, 2}
    assert replies[0] == replies[1] == {"handed_back": True}
    assert (replies[2]["charged"], "lost" in replies[2]) == (False, True)
    assert [*lane.calls] == [3]


def test_frozen_worker_does_not_take_its_lane_for_stuck(lane: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    child, clock = lane.child, SimpleNamespace()
    child.pulse, child._ticked, child._since, child._looked = Pulse.create(), 0.0, 0.0, 0.0
    monkeypatch.setattr(host, "get_settings", lambda: SimpleNamespace(lease_seconds=10.0))
    monkeypatch.setattr(host, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def is_stuck(now: float) -> bool:
        clock.now = now
        return child.is_stuck()

    child.pulse.tick(1.0)
    assert [is_stuck(now) for now in (1.0, 4.0, 7.0, 10.0, 12.0)] == [False] * 4 + [True]
    child.pulse.tick(13.0)
    assert [is_stuck(now) for now in (13.0, 60.0, 63.0, 66.0, 69.0, 71.0)] == [False] * 5 + [True]


def test_pool_grows_for_the_calls_of_the_lane_and_not_for_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [SimpleNamespace(has_model=has_model) for has_model in (True, True, False)]
    monkeypatch.setattr("workers.lane.autoscaler.state.reserved_requests", requests)
    worker = SimpleNamespace(lane=SimpleNamespace(calls={1: None, 2: None}))
    assert Autoscaler(None, 5, worker=worker).qty == 3
