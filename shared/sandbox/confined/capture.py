"""Captures the output that a function prints."""

from __future__ import annotations

import io


class StdoutTooLarge(BaseException):
    """Printed output exceeds the limit; not an `Exception`, so that well-behaved handlers let it pass."""


class Capture(io.StringIO):
    """Replaces stdout and stderr, and stops a function that floods them.

    Args:
        limit: bytes of UTF-8 that are kept.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.written = 0
        self._taken = 0

    @property
    def overflowed(self) -> bool:
        """True if more was printed than is kept."""
        return self.written > self.limit

    def write(self, text: str) -> int:
        """Keep as much as fits.

        Raises:
            StdoutTooLarge: some of it did not fit.
        """
        room = self.limit - self.written
        self.written += len(text) if text.isascii() else len(text.encode("utf-8", "backslashreplace"))
        super().write(text[: max(room, 0)])
        if self.overflowed:
            raise StdoutTooLarge
        return len(text)

    def take(self) -> bytes:
        """Return the text that was printed since the last time, as far as the limit permits."""
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        taken = text.encode("utf-8", "backslashreplace")[: self.limit - self._taken]
        self._taken += len(taken)
        return taken
