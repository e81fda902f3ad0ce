"""Resource limits: a second barrier behind the filter, and the hard edge of memory and CPU."""

from __future__ import annotations

import math
import resource

ONE_DESCRIPTOR = 1
STACK = 8 << 20
NEVER = ("FSIZE", "CORE", "MEMLOCK", "MSGQUEUE", "SIGPENDING", "NPROC", "RTPRIO", "NICE")


def _tighten(name: str, value: int) -> None:
    number = getattr(resource, f"RLIMIT_{name}", None)
    if number is not None:
        resource.setrlimit(number, (value, value))


def limit_zygote() -> None:
    """A known stack, whatever the host's is: the C stack decides where deep recursion ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    soft = STACK if hard == resource.RLIM_INFINITY else min(STACK, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))


def limit_child() -> None:
    """What no function needs: files, processes, locked memory, queues, and any descriptor but its channel."""
    for name in NEVER:
        _tighten(name, 0)
    _tighten("NOFILE", ONE_DESCRIPTOR)


def limit_call(address_space: int, cpu_seconds: float) -> None:
    """The limits of one call.

    Args:
        address_space: bytes in all, the interpreter's own included.
        cpu_seconds: rounded up to whole seconds, plus one; the host's watch is the precise one.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        address_space = min(address_space, hard)
    _tighten("AS", address_space)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    seconds = math.ceil(cpu_seconds) + 1
    _tighten("CPU", seconds if hard == resource.RLIM_INFINITY else min(seconds, hard))
