"""A parked child: confined for good, warmed up, it serves one request and ends."""

from __future__ import annotations

import os
import signal
import sys

from . import canary, limits, privileges, request, runner
from .seccomp import CHANNEL, Filter

_WARM_UP = """
import asyncio, json
async def part(number):
    await asyncio.sleep(0)
    return f"{number}"
async def main(numbers):
    print(end="")
    return {"parts": await asyncio.gather(*[part(number) for number in numbers])}
"""


def live(channel: int, strict: Filter | None, with_rlimits: bool) -> None:
    """Everything that a child ever does; it ends with the process."""
    os.dup2(channel, CHANNEL)
    os.closerange(CHANNEL + 1, 1 << 16)
    privileges.die_with_parent()
    if with_rlimits:
        limits.limit_child()
    if strict:
        strict.install()
    warm_up()
    order = request.read(_read_exactly)
    if order.address_space:
        limits.limit_call(order.address_space, order.cpu_seconds)
    _write(_serve(order))
    # The host reads this process's CPU time and memory, then ends it. It must not vanish before.
    os.read(CHANNEL, 1)


def warm_up() -> None:
    """Run a small function: it touches the pages and fills the caches that the real one will need."""
    settings = {"allowed": frozenset({"asyncio", "json"}), "check": True, "address_space": 0, "cpu_seconds": 1.0}
    limits_of_output = {"max_output": 1 << 10, "max_stdout": 1 << 10}
    rehearsal = request.Request(
        "call", "main", source=_WARM_UP, arguments=b'{"numbers": [1]}', **settings, **limits_of_output
    )
    runner.serve(rehearsal)


def forget_terminal() -> None:
    """No standard stream, and the interpreter's own handler of SIGINT undone."""
    sys.stdin = None
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _serve(order: request.Request) -> bytes:
    if order.operation in ("call", "validate"):
        return runner.serve(order)
    return canary.attempt(order)


def _read_exactly(length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = os.read(CHANNEL, length - len(parts))
        if not part:
            os._exit(0)
        parts += part
    return bytes(parts)


def _write(reply: bytes) -> None:
    rest = memoryview(reply)
    while rest:
        rest = rest[os.write(CHANNEL, rest) :]
