"""The escape attempts of a canary child. Every attempt must fail, or the sandbox does not serve.

The attempts go straight to the kernel: they test its behaviour, not the return values of the set-up calls.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
from collections.abc import Callable

from . import libc, wire
from .request import Request

OVER_ALLOCATION = 1 << 30
"""More address space than any canary is allowed to have."""

_AT_FDCWD = -100
_AF_INET, _SOCK_STREAM = 2, 1
_READ_WRITE, _READ_WRITE_EXEC = 3, 7
_SHARED_ANONYMOUS, _PRIVATE_ANONYMOUS = 0x21, 0x22


def _open() -> None:
    libc.syscall("openat", _AT_FDCWD, b"/", os.O_RDONLY)


def _socket() -> None:
    libc.syscall("socket", _AF_INET, _SOCK_STREAM, 0)


def _kill() -> None:
    libc.syscall("kill", 1, 0)


def _map_executable() -> None:
    libc.syscall("mmap", None, 4096, _READ_WRITE_EXEC, _PRIVATE_ANONYMOUS, -1, 0)


def _map_shared() -> None:
    libc.syscall("mmap", None, 4096, _READ_WRITE, _SHARED_ANONYMOUS, -1, 0)


def _over_allocate() -> None:
    try:
        bytearray(OVER_ALLOCATION)
    except MemoryError:
        raise OSError("refused") from None


def _fork() -> None:
    if libc.syscall("clone", signal.SIGCHLD, 0, 0, 0, 0) == 0:
        os._exit(0)


def _execute() -> None:
    nothing = (ctypes.c_uint64 * 1)(0)
    libc.syscall("execve", b"/proc/self/exe", nothing, nothing)


def _trace() -> None:
    ptrace_traceme = 0
    libc.syscall("ptrace", ptrace_traceme, 0, 0, 0)


POLITE: dict[str, Callable[[], None]] = {
    "open": _open,
    "socket": _socket,
    "kill": _kill,
    "executable mmap": _map_executable,
    "shared mmap": _map_shared,
    "over-allocation": _over_allocate,
}
"""Attempts that must fail with an error."""

FATAL: dict[str, Callable[[], None]] = {"fork": _fork, "exec": _execute, "ptrace": _trace}
"""Attempts that must end the process."""


def attempt(request: Request) -> bytes:
    """Try the escape that the request names ("canary", or one of `FATAL`) and report what succeeded."""
    names = POLITE if request.operation == "canary" else {request.operation: FATAL[request.operation]}
    succeeded = [name for name, action in names.items() if _succeeds(action)]
    body = json.dumps(succeeded).encode()
    return wire.REPLY.pack(wire.VALUE, len(body), 0) + body


def _succeeds(action: Callable[[], None]) -> bool:
    try:
        action()
    except OSError:
        return False
    return True
