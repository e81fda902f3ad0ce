"""What those who follow a task are told of a step while it runs."""

from __future__ import annotations

import time
from typing import Any

from shared.hints import publish_streamed
from shared.streaming import Streamed
from workers.models.base import joined
from workers.task import ClaimedTask

FLUSH_SECONDS = 0.05


class Follower:
    """One step's streamed text. It may be lost, and whoever counts sees that; the finished step holds the whole.

    Args:
        task: whose step it is. Text under a claim that was taken away is not shown.
        step: its number.
    """

    def __init__(self, task: ClaimedTask, step: int) -> None:
        self.task_id = task.id
        self.about = {"step": step, "claim": task.claim}
        self._key = task.stream_key
        self._number = 0
        self._from = 0
        self._held: list[str] = []
        self._sent_at = 0.0

    def text(self, delta: str) -> None:
        """More text; what comes within a twentieth of a second is sent together."""
        self._held.append(delta)
        if time.monotonic() - self._sent_at >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Sends what is held back, but for half a character."""
        said = joined("".join(self._held))
        rest = said[-1:] if "\ud800" <= said[-1:] <= "\udbff" else ""
        self._held = [rest] if rest else []
        if text := said.removesuffix(rest):
            self._publish("step.text", {**self.about, "from": self._from, "text": text})
            self._from += len(text)
            self._sent_at = time.monotonic()

    def restarted(self) -> None:
        """What was streamed of the step so far is void: it begins anew."""
        self._held.clear()
        self._from = 0
        self._publish("step.restarted", self.about)

    def _publish(self, type: str, data: dict[str, Any]) -> None:
        self._number += 1
        publish_streamed(self.task_id, Streamed(self._number, type, data), self._key)


class Silence(Follower):
    """Of a step whose text is no answer to anybody."""

    def text(self, delta: str) -> None:
        """Tells nobody."""

    def restarted(self) -> None:
        """Tells nobody."""
