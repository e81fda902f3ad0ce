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


def test_streamed_message_is_bound_to_task_and_execution() -> None:
    task, other, key = uuid4(), uuid4(), b"secret"
    said = received(Streamed(1, "step.text", {"step": 1, "claim": 1, "text": "é\ud83d"}).seal(task, key).encode())
    assert said is not None
    assert said.is_genuine(task, key)
    assert not said.is_genuine(other, key)
    assert not said.is_genuine(task, b"the secret of another")
    for change in ({"number": 2}, {"type": "step.restarted"}, {"data": {**said.data, "text": "e"}}, {"tag": "é\ud83d"}):
        assert not replace(said, **change).is_genuine(task, key)
