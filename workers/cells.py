"""Memory that a slot shares with the worker's main process while it runs a pack of tasks.

The slot writes which task it runs, and the ends that it has not committed yet. So the main process can enforce the time
limits of each task, and if the slot dies or is stuck, it records what was done and gives back the rest.
"""

from __future__ import annotations

import json
import mmap
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

SIZE = 64 << 10
CELLS = 1024
"""More than a worker has slots. Only cells that have been used take memory."""
# Native types are written in one piece: the other process may read at any moment.
HEAD = struct.Struct("@Iid")  # the owner, the index of the task that began last, and since when
LENGTH = struct.Struct("@I")
STOP, ENDED, LENGTH_AT, UNSAVED = 16, 20, 96, 100
NONE = -1

# Created before the pool forks, so that the children have it too.
_memory = mmap.mmap(-1, CELLS * SIZE)


@dataclass(frozen=True, slots=True)
class Progress:
    """The contents of a cell at one moment.

    Attributes:
        last: the index of the task that began last.
        running: the same, if that task has not ended.
        since: when it began, by the monotonic clock.
    """

    last: int | None
    running: int | None
    since: float


class Cell:
    """One cell. The main process calls `open`, `stop`, `read` and `unsaved`, the slot everything else.

    Args:
        number: its place in the memory.
        owner: the number of the pack that it is for.
    """

    def __init__(self, number: int, owner: int) -> None:
        self.number = number
        self.owner = owner
        self._at = number * SIZE
        self._length = 0

    def open(self) -> None:
        """Make it the empty cell of this pack."""
        _memory[self._at : self._at + UNSAVED] = bytes(UNSAVED)
        HEAD.pack_into(_memory, self._at, self.owner, NONE, 0.0)

    def stop(self) -> None:
        """Ask the slot to begin no other task."""
        _memory[self._at + STOP] = 1

    @property
    def lost(self) -> bool:
        """Return whether the main process has given the cell to another pack: it has forgotten this one."""
        return bool(HEAD.unpack_from(_memory, self._at)[0] != self.owner)

    @property
    def stopped(self) -> bool:
        """Return whether the slot must begin no other task."""
        return self.lost or bool(_memory[self._at + STOP])

    def begin(self, index: int, now: float) -> None:
        """Note the task that begins."""
        if not self.lost:
            HEAD.pack_into(_memory, self._at, self.owner, index, now)

    def end(self, index: int) -> None:
        """Note that a task has ended."""
        if not self.lost:
            _memory[self._at + ENDED + index] = 1

    def keep(self, end: str) -> bool:
        """Keep an end, as JSON, until it is committed. Return False if it is not Unicode, or if there is no room."""
        if self.lost:
            return False
        try:
            data = end.encode()
        except UnicodeEncodeError:
            return False
        begin = self._at + UNSAVED + self._length
        if UNSAVED + self._length + len(data) + 1 > SIZE:
            return False
        _memory[begin : begin + len(data) + 1] = data + b"\n"
        self._length += len(data) + 1
        LENGTH.pack_into(_memory, self._at + LENGTH_AT, self._length)
        return True

    def saved(self) -> None:
        """Drop the ends: they are committed."""
        self._length = 0
        if not self.lost:
            LENGTH.pack_into(_memory, self._at + LENGTH_AT, 0)

    def read(self, tasks: int) -> Progress:
        """Return the progress of a pack with that many tasks."""
        owner, last, since = HEAD.unpack_from(_memory, self._at)
        if owner != self.owner or not 0 <= last < tasks:
            return Progress(None, None, since)
        return Progress(last, None if _memory[self._at + ENDED + last] else last, since)

    def unsaved(self) -> list[dict[str, Any]]:
        """Return ends that may not be committed, as `shared.tasks.lifecycle.ended` returns them.

        Those that the slot replaces in this moment are left out: it has just committed them.
        """
        (length,) = LENGTH.unpack_from(_memory, self._at + LENGTH_AT)
        ends = []
        for end in _memory[self._at + UNSAVED : self._at + UNSAVED + length].split(b"\n")[:-1]:
            with suppress(ValueError):
                ends.append(json.loads(end))
        return ends
