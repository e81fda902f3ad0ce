"""Memory that a worker takes: its main process and everything below it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

EVERY_SECONDS = 15.0
"""Reading takes a few milliseconds for each process, and heartbeats may follow each other quickly."""
PROC = Path("/proc")
SHARE = "Pss:"
"""The line with a process's memory in kB: of a page that several processes share, each has its part."""


class MemoryGauge:
    """The memory of this process and its descendants, read every 15 seconds."""

    def __init__(self) -> None:
        self._next = 0.0
        self._bytes: int | None = None

    def read(self) -> int | None:
        """Return the bytes; None if the system does not report it (macOS)."""
        if time.monotonic() >= self._next:
            self._bytes = memory_of(os.getpid())
            self._next = time.monotonic() + EVERY_SECONDS
        return self._bytes


def memory_of(pid: int) -> int | None:
    """Return the bytes of a process and its descendants, without those that may not be read; None if it may not be."""
    own = _own_memory(pid)
    return None if own is None else own + sum(memory_of(child) or 0 for child in _children(pid))


def _own_memory(pid: int) -> int | None:
    with suppress(OSError):
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith(SHARE):
                return int(line.split()[1]) * 1024
    return None


def _children(pid: int) -> Iterator[int]:
    with suppress(OSError):
        for thread in (PROC / str(pid) / "task").iterdir():
            with suppress(OSError):
                yield from map(int, (thread / "children").read_text().split())
