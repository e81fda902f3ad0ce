"""The few C functions that Python does not offer, called through ctypes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

from .syscalls import this_architecture

_library = ctypes.CDLL(None, use_errno=True)
_library.syscall.restype = ctypes.c_long
_library_under_gil = ctypes.PyDLL(None, use_errno=True)

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38
PR_SET_THP_DISABLE = 41
PR_CAPBSET_DROP = 24
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

Argument = int | bytes | None | ctypes.Array[ctypes.c_uint32] | ctypes.Array[ctypes.c_uint64]


def _checked(result: int, what: str) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(name: str, *arguments: object) -> int:
    """Make a system call by its name.

    Raises:
        OSError: it failed, or this architecture's table does not have it.
    """
    architecture = this_architecture()
    if architecture is None or name not in architecture.numbers:
        raise OSError(38, f"no such system call here: {name}")
    return raw_syscall(architecture.numbers[name], *arguments, what=name)


def raw_syscall(number: int, *arguments: object, what: str = "syscall") -> int:
    """Make a system call by its number."""
    return prepared_syscall(number, *arguments, what=what)()


def prepared_syscall(number: int, *arguments: object, what: str = "syscall") -> Callable[[], int]:
    """Return a function that makes a system call, any number of times.

    Plain integers are widened to the size of a register: ctypes would pass them as 32 bits.
    """
    widened = [ctypes.c_long(value) if isinstance(value, int) else value for value in (number, *arguments)]
    call = _library.syscall
    return lambda: _checked(call(*widened), what)


def fork() -> int:
    """Call the C library's fork, without Python's own work around it.

    For single-threaded processes only. `os.fork` would run every at-fork hook of the standard library in the
    child and touch some 200 more pages, each of which the kernel has to copy. `reseed` replaces the one
    hook that matters.

    Returns:
        The child's pid, or 0 in the child.

    Raises:
        OSError: no more processes can be created.
    """
    return _checked(_library_under_gil.fork(), "fork")


def prctl(option: int, value: int = 0) -> int:
    """Call `prctl(2)` with one argument; the other three are zero, as newer options require."""
    arguments = [ctypes.c_ulong(word) for word in (value, 0, 0, 0)]
    return _checked(_library.prctl(ctypes.c_int(option), *arguments), f"prctl({option})")


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` name."""
    _checked(_library.unshare(flags), f"unshare({flags:#x})")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Call `mount(2)`."""
    texts = [text.encode() if text is not None else None for text in (source, target, kind, options)]
    _checked(_library.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]), f"mount {target}")


def detach(target: str) -> None:
    """Lazily unmount the file system at `target`."""
    mnt_detach = 2
    _checked(_library.umount2(target.encode(), mnt_detach), f"umount {target}")
