"""Streams a running step's text to the followers of a task."""

from __future__ import annotations

import time
from typing import Any

from shared.notifications import publish_streamed
from shared.streaming import Streamed
from workers.followers import UNHEARD_SECONDS
from workers.llm.base import join_surrogates
from workers.task import ClaimedTask

FLUSH_SECONDS = 0.05


class TextStream:
    """One step's streamed text. Text may be lost, which clients can detect by counting; the finished step has all of
    it.

    Args:
        task: the step's task. Text from a superseded claim is not shown.
        step: the step's number.
        unheard: no follower received the last notification.
    """

    def __init__(self, task: ClaimedTask, step: int, *, unheard: bool = False) -> None:
        self.task_id = task.id
        self.about = {"step": step, "claim": task.claim}
        self._key = task.stream_key
        self._number = 0
        self._from = 0
        self._held: list[str] = []
        self._sent_at = time.monotonic() if unheard else 0.0
        self._pause = UNHEARD_SECONDS if unheard else FLUSH_SECONDS

    def text(self, delta: str) -> None:
        """Add text. What arrives within 50 ms is sent together; within a second, if the task has no followers."""
        self._held.append(delta)
        if time.monotonic() - self._sent_at >= self._pause:
            self.flush()

    def finish(self) -> None:
        """Send the rest to the followers. If there were none at the last message, the finished step is enough."""
        if self._pause != UNHEARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send the buffered text, except for an incomplete character."""
        said = join_surrogates("".join(self._held))
        rest = said[-1:] if "\ud800" <= said[-1:] <= "\udbff" else ""
        self._held = [rest] if rest else []
        if text := said.removesuffix(rest):
            receivers = self._publish("step.text", {**self.about, "from": self._from, "text": text})
            self._pause = UNHEARD_SECONDS if receivers == 0 else FLUSH_SECONDS
            self._from += len(text)
            self._sent_at = time.monotonic()

    def restart(self) -> None:
        """Discard the text streamed so far: the step starts again."""
        self._held.clear()
        self._from = 0
        self._publish("step.restarted", self.about)

    def _publish(self, type: str, data: dict[str, Any]) -> int | None:
        self._number += 1
        return publish_streamed(self.task_id, Streamed(self._number, type, data), self._key)


class SilentStream(TextStream):
    """The stream of a step whose text is not part of any answer."""

    def text(self, delta: str) -> None:
        """Send nothing."""

    def restart(self) -> None:
        """Send nothing."""
