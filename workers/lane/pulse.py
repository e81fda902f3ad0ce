"""A few bytes of memory that the lane writes and the main process reads, whatever the lane's event loop is doing."""

from __future__ import annotations

import mmap
import os
import struct

FORM = struct.Struct("dq")


class Pulse:
    """The time of the last tick of the lane's event loop, and the task that is running in it.

    Args:
        file: descriptor of the memory, from `Pulse.create`.
    """

    def __init__(self, file: int) -> None:
        self.file = file
        self._memory = mmap.mmap(file, FORM.size)

    @classmethod
    def create(cls) -> Pulse:
        """Create the memory."""
        file = os.memfd_create("minion-lane")
        os.ftruncate(file, FORM.size)
        return cls(file)

    def tick(self, now: float) -> None:
        """Write the time, in seconds of the monotonic clock."""
        self._memory[:8] = struct.pack("d", now)

    def switch(self, key: int) -> None:
        """Write the key of the task that runs now; 0: none does."""
        self._memory[8:] = struct.pack("q", key)

    def read(self) -> tuple[float, int]:
        """Return the time of the last tick and the key of the running task."""
        ticked, key = FORM.unpack(self._memory[:])
        return ticked, key

    def close(self) -> None:
        """Free the memory in this process."""
        self._memory.close()
        os.close(self.file)
