"""What those who follow a task are told of a step while it runs."""

from __future__ import annotations

import time
from uuid import UUID

from shared.hints import publish_event
from workers.models.base import joined

FLUSH_SECONDS = 0.05


class Follower:
    """One step's streamed text. It may be lost, and whoever counts sees that; the finished step holds the whole.

    Args:
        claim: under which the step is made; what one says whose claim was taken away is not shown.
        step: its number.
    """

    def __init__(self, task_id: UUID, claim: int, step: int) -> None:
        self.task_id = task_id
        self.about = {"step": step, "claim": claim}
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
            publish_event(self.task_id, "step.text", {**self.about, "from": self._from, "text": text})
            self._from += len(text)
            self._sent_at = time.monotonic()

    def restarted(self) -> None:
        """What was streamed of the step so far is void: it begins anew."""
        self._held.clear()
        self._from = 0
        publish_event(self.task_id, "step.restarted", self.about)


class Silence(Follower):
    """Of a step whose text is no answer to anybody."""

    def text(self, delta: str) -> None:
        """Tells nobody."""

    def restarted(self) -> None:
        """Tells nobody."""
