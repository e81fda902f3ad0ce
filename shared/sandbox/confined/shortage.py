"""Resource shortages, and the limits behind them: such errors say nothing about the sandbox, and a retry may help."""

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
    """Describe the shortage behind an error; None if the error means something else."""
    if isinstance(error, MemoryError):
        return _MEMORY
    if isinstance(error, OSError):
        return _SHORTAGES.get(error.errno or 0)
    # Python distinguishes a failed thread start from other errors only by its text.
    return _PROCESSES if isinstance(error, RuntimeError) and "start new thread" in str(error) else None
