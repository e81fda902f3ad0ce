"""Export of deleted tasks: JSON Lines, one line per task and one file per day.

A batch is on disk before its deletion is committed. A crash may therefore export a task twice, but never lose it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from shared.errors import NotConfigured

BLOCK = 64 * 1024


class TaskExport:
    """Appends to `tasks-YYYY-MM-DD.jsonl` (UTC) in a folder, which several processes may share."""

    def __init__(self, folder: Path) -> None:
        """Raise NotConfigured if the folder is missing: creating it would hide a disk that is not mounted."""
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise NotConfigured(
                f"MINION_RETENTION_EXPORT names {folder}, which is not a folder that this process may write to. "
                "Create it, or give this process access to it."
            )
        self.folder = folder

    def append(self, lines: Iterable[str]) -> None:
        """Write lines and return when they are on disk; write none of them on failure.

        Raises:
            OSError: the disk is full, or the folder is gone.
        """
        path = self.folder / f"tasks-{datetime.now(UTC):%Y-%m-%d}.jsonl"
        # Inputs and outputs are private.
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            whole = _end_of_last_line(file)
            # An incomplete line of a killed process belongs to a task that was not deleted.
            os.ftruncate(file, whole)
            try:
                for line in lines:
                    _write(file, line.encode() + b"\n")
                os.fsync(file)
            except BaseException:
                os.ftruncate(file, whole)
                raise
        finally:
            os.close(file)
        _sync_folder(self.folder)


def _write(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]


def _end_of_last_line(file: int) -> int:
    """Return the number of bytes in the complete lines of a file."""
    end = os.fstat(file).st_size
    while end:
        begin = max(0, end - BLOCK)
        found = os.pread(file, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def _sync_folder(folder: Path) -> None:
    """Flush the folder, so that the name of a new file is on disk too."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
