"""Notifications of a task's followers."""

from __future__ import annotations

from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest

from workers import followers
from workers.followers import Followers


@pytest.mark.parametrize(("receivers", "notified_at"), [(0, [100.0, 101.0]), (1, None), (None, None)])
def test_notifications_without_followers_are_sent_once_a_second(
    monkeypatch: pytest.MonkeyPatch, receivers: int | None, notified_at: list[float] | None
) -> None:
    clock = SimpleNamespace(now=100.0)
    sent: list[float] = []

    def publish(task: UUID) -> int | None:
        sent.append(clock.now)
        return receivers

    monkeypatch.setattr(followers, "publish_progress", publish)
    monkeypatch.setattr(followers, "time", SimpleNamespace(monotonic=lambda: clock.now))
    task = Followers(uuid4())
    moments = [100.0, 100.5, 100.9, 101.0, 101.5]
    for clock.now in moments:
        task.notify()
    assert sent == (notified_at or moments)
    assert task.absent == (receivers == 0)
