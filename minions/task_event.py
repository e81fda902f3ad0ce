"""Events of a task, as `follow` yields them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minions.task import FINAL

ENDINGS = frozenset(f"task.{state}" for state in FINAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEvent:
    """Something that happened to a task.

    Attributes:
        id: counts from 1 within the task; None for streamed text, which is not stored.
        type: `task.accepted`, `task.running`, `task.waiting`, `task.pending`, finally `task.succeeded`, `task.failed`,
            `task.cancelled` or `task.expired`; `step.started`, `step.finished`, `step.failed`; `step.text` (new text in
            `data["text"]`, which starts after `data["from"]` characters, some of which may have been missed) and
            `step.restarted` (the text streamed for `data["step"]` so far is void).
        data: documented on the API's page on events.
    """

    id: int | None
    type: str
    data: dict[str, Any]

    @property
    def final(self) -> bool:
        """True if no event follows it."""
        return self.type in ENDINGS
