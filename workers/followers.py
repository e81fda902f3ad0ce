"""Notifies the followers of a task that it has new stored events."""

from __future__ import annotations

import time
from uuid import UUID

from shared.notifications import publish_progress

UNHEARD_SECONDS = 1.0
"""Between two notifications or streamed texts while no follower receives them. Followers also look once a second by
themselves, and a new one receives text after this time at the latest."""


class Followers:
    """The followers of a task, as this execution knows them."""

    def __init__(self, task_id: UUID) -> None:
        self._task_id = task_id
        self._next = 0.0

    @property
    def absent(self) -> bool:
        """True if no follower received the last notification, a moment ago."""
        return time.monotonic() < self._next

    def notify(self) -> None:
        """Notify them; never raises. While there are none, most notifications are left out."""
        if not self.absent and publish_progress(self._task_id) == 0:
            self._next = time.monotonic() + UNHEARD_SECONDS
