"""File locks that the kernel releases when the last process that holds them ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

_own_locks: set[int] = set()


def try_lock(path: Path) -> int | None:
    """Lock `path` (created with mode 0600 if missing) and return the descriptor that holds the lock.

    Children that inherit the descriptor hold the lock too. Returns None if another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def try_own(path: Path) -> int | None:
    """Lock as `try_lock` does, but not for forked children, which would outlive the owner. Write our pid."""
    descriptor = try_lock(path)
    if descriptor is not None:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        _own_locks.add(descriptor)
    return descriptor


def disown(descriptor: int) -> None:
    """Release a lock from `try_own`."""
    _own_locks.discard(descriptor)
    os.close(descriptor)


def _forget_in_child() -> None:
    for descriptor in _own_locks:
        os.close(descriptor)
    _own_locks.clear()


os.register_at_fork(after_in_child=_forget_in_child)
