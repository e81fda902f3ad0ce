"""Streamed text of a step, as followers receive it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from shared.streaming import Streamed, received
from workers import text_stream
from workers.text_stream import TextStream


def test_half_a_character_waits_for_its_second_half(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Streamed] = []
    monkeypatch.setattr(text_stream, "publish_streamed", lambda task, said, key: told.append(said))
    monkeypatch.setattr(text_stream, "FLUSH_SECONDS", 0.0)
    task: Any = SimpleNamespace(id=uuid4(), claim=1, stream_key=b"secret")
    following = TextStream(task, 1)
    for delta in ("", "a", "ä\ud83d", "\ude00", "b"):
        following.text(delta)
    following.flush()
    assert [said.data["text"] for said in told] == ["a", "ä", "😀", "b"]
    assert [said.number for said in told] == [1, 2, 3, 4]


@pytest.mark.parametrize(("receivers", "sent"), [(0, ["a"]), (1, ["a", "b", "c"]), (None, ["a", "b", "c"])])
def test_text_without_followers_is_sent_less_often(
    monkeypatch: pytest.MonkeyPatch, receivers: int | None, sent: list[str]
) -> None:
    told: list[Streamed] = []

    def publish(task: Any, said: Streamed, key: bytes) -> int | None:
        told.append(said)
        return receivers

    monkeypatch.setattr(text_stream, "publish_streamed", publish)
    monkeypatch.setattr(text_stream, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(text_stream, "UNHEARD_SECONDS", 3600.0)
    task: Any = SimpleNamespace(id=uuid4(), claim=1, stream_key=b"secret")
    stream = TextStream(task, 1)
    for delta in ("a", "b", "c"):
        stream.text(delta)
    stream.finish()
    assert [said.data["text"] for said in told] == sent


def test_new_follower_receives_the_held_text_within_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Streamed] = []
    receivers = iter((0, 1, 1))
    moments = iter((100.0, 100.0, 100.9, 101.0, 101.0, 101.1, 101.1))

    def publish(task: Any, said: Streamed, key: bytes) -> int:
        told.append(said)
        return next(receivers)

    monkeypatch.setattr(text_stream, "publish_streamed", publish)
    monkeypatch.setattr(text_stream, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    task: Any = SimpleNamespace(id=uuid4(), claim=1, stream_key=b"secret")
    stream = TextStream(task, 1)
    for delta in ("a", "b", "c", "d"):
        stream.text(delta)
    assert [said.data["text"] for said in told] == ["a", "bc", "d"]


def test_streamed_message_is_bound_to_task_and_execution() -> None:
    task, other, key = uuid4(), uuid4(), b"secret"
    said = received(Streamed(1, "step.text", {"step": 1, "claim": 1, "text": "é\ud83d"}).seal(task, key).encode())
    assert said is not None
    assert said.is_genuine(task, key)
    assert not said.is_genuine(other, key)
    assert not said.is_genuine(task, b"the secret of another")
    for change in ({"number": 2}, {"type": "step.restarted"}, {"data": {**said.data, "text": "e"}}, {"tag": "é\ud83d"}):
        assert not replace(said, **change).is_genuine(task, key)


def test_stream_of_a_task_without_followers_begins_with_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[Streamed] = []
    moments = iter((100.0, 100.5, 101.0, 101.0))
    monkeypatch.setattr(text_stream, "publish_streamed", lambda task, message, key: published.append(message))
    monkeypatch.setattr(text_stream, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    task: Any = SimpleNamespace(id=uuid4(), claim=1, stream_key=b"secret")
    stream = TextStream(task, 1, unheard=True)
    stream.text("a")
    assert not published
    stream.text("b")
    assert [message.data["text"] for message in published] == ["ab"]
