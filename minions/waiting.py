"""The time that a client waits."""

from __future__ import annotations

import time
from typing import Any

from minions.errors import InvalidInput, WaitTimeout

LONGEST_POLL = 30.0


class WaitEnd:
    """The end of a wait on the monotonic clock."""

    def __init__(self, timeout: float | None) -> None:
        """Begin to wait.

        Args:
            timeout: seconds; None waits indefinitely.

        Raises:
            InvalidInput: the timeout is negative or not a number.
        """
        if timeout is not None and not timeout >= 0:
            raise InvalidInput(f"The timeout {timeout:g} is not valid: it must be 0 seconds or more, or None.")
        self._timeout = timeout
        self._at = None if timeout is None else time.monotonic() + timeout

    def next_poll(self) -> float:
        """Return the seconds that the next request may wait."""
        return LONGEST_POLL if self._at is None else max(0.0, min(LONGEST_POLL, self._at - time.monotonic()))

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return self._at is not None and time.monotonic() >= self._at

    def check(self, task: Any) -> None:
        """Raise WaitTimeout if the time is up, and the task has not ended."""
        if self.is_over and not task.final:
            raise WaitTimeout(
                f"Task {task.id} is still {task.state} after {self._timeout:g} s. It continues.", task=task
            )
