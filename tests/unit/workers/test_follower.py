"""What followers are told of a step."""

from __future__ import annotations

from uuid import uuid4

import pytest

from workers import follower
from workers.follower import Follower


def test_half_a_character_waits_for_its_other_half(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(follower, "publish_event", lambda task, kind, data: told.append(data["text"]))
    monkeypatch.setattr(follower, "FLUSH_SECONDS", 0.0)
    following = Follower(uuid4(), 1, 1)
    for delta in ("", "a", "ä\ud83d", "\ude00", "b"):
        following.text(delta)
    following.flush()
    assert told == ["a", "ä", "😀", "b"]
