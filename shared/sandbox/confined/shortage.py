"""What has run out, and where its limit is: such errors say nothing about the sandbox, and trying again may help."""

from __future__ import annotations

import errno

_PROCESSES = (
    "no more processes may be started: the limit of the container (`docker run --pids-limit`) or of the user "
    "(`ulimit -u`) is reached"
)
_MEMORY = "memory ran out on this machine or in its container"
_SHORTAGES = {
    errno.EAGAIN: _PROCESSES,
    errno.ENOMEM: _MEMORY,
    errno.EMFILE: "no more files may be opened: the limit of the process (`ulimit -n`) is reached",
    errno.ENFILE: "no more files may be opened on this machine",
}


def of(error: Exception) -> str | None:
    """The shortage behind an error, in words; None if the error means something else."""
    if isinstance(error, MemoryError):
        return _MEMORY
    if isinstance(error, OSError):
        return _SHORTAGES.get(error.errno or 0)
    # Python tells a failed thread from other mistakes by its text alone.
    return _PROCESSES if isinstance(error, RuntimeError) and "start new thread" in str(error) else None
