"""Resource limits: a second barrier behind the filter, and the hard limits of memory and CPU."""

from __future__ import annotations

import contextlib
import resource

from . import libc

ONE_DESCRIPTOR = 1
HIGHEST = (1 << 63) - 1
"""Practically no limit, on every system."""
STACK = 8 << 20
NEVER = ("FSIZE", "CORE", "MEMLOCK", "MSGQUEUE", "SIGPENDING", "RTPRIO", "NICE")


def _tighten(name: str, value: int) -> None:
    number = getattr(resource, f"RLIMIT_{name}", None)
    if number is not None:
        resource.setrlimit(number, (value, value))


def limit_stack() -> None:
    """Set a known stack size, independent of the host's: the C stack decides where deep recursion ends.

    A function must not raise its limit: a stack does not count as data.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    _tighten("STACK", STACK if hard == resource.RLIM_INFINITY else min(STACK, hard))


def limit_zygote() -> None:
    """Remove what neither a zygote nor a function needs: files, locked memory, queues, priorities, huge pages.

    A function can give back all but a corner of a huge page: only the corner is then counted, but the whole stays.
    """
    for name in NEVER:
        _tighten(name, 0)
    with contextlib.suppress(OSError):
        libc.prctl(libc.PR_SET_THP_DISABLE, 1)


def limit_child() -> None:
    """Remove what a zygote needs and a function does not: processes, and any descriptor but its channel."""
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (ONE_DESCRIPTOR, ONE_DESCRIPTOR))


def limit_development() -> None:
    """Apply the part of `limit_child` that still lets a fresh interpreter import."""
    for name in ("FSIZE", "CORE", "NPROC"):
        _tighten(name, 0)


def limit_call(address_space: int, data: int, cpu_seconds: int) -> None:
    """Set the limits of one call, or as much of them as the process may have anyway.

    Args:
        address_space: bytes in all, the interpreter's own included.
        data: bytes of private writable memory, the interpreter's own included. A function that unmaps the interpreter's
            libraries gains address space, but no memory.
        cpu_seconds: CPU time after which the kernel kills; the host's watch is the precise one.
    """
    limits = (
        (resource.RLIMIT_AS, address_space),
        (resource.RLIMIT_DATA, data),
        (resource.RLIMIT_CPU, cpu_seconds),
    )
    for number, value in limits:
        _, hard = resource.getrlimit(number)
        lowest = value if hard == resource.RLIM_INFINITY else min(value, hard)
        if lowest < HIGHEST:
            resource.setrlimit(number, (lowest, lowest))
        else:
            resource.setrlimit(number, (hard, hard))
