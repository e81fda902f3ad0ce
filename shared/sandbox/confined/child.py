"""A parked child: permanently confined and warmed up, it serves one request and ends."""

from __future__ import annotations

import marshal
import os
import random
import select
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import canary, limits, modules, privileges, request, runner, validator, wire
from .calls import Line
from .seccomp import CHANNEL, CHILD_RULES, Filter
from .syscalls import Architecture

Hook = Callable[[], object]
"""A function that a preloaded package needs to have called in each child."""

_HIGHEST_DESCRIPTOR = 1 << 20
_CHUNK = 1 << 16
_SHORT_IDLE = 5
"""Milliseconds without a request after which a child warms up. An earlier request finds that work undone, but needs
most of it anyway: while children are used this quickly, processor time is worth more than the time of one call."""
_LONG_IDLE = 15
"""Milliseconds after that until a child expects to stay parked for a while."""
_REHEARSALS = 5

_PLAIN = """
def main(numbers):
    print(end="")
    return {"parts": [f"{number}" for number in numbers]}
"""
_ASYNC = """
import asyncio
async def part(number):
    await asyncio.sleep(0)
    return number
async def main(numbers):
    return await asyncio.gather(*[part(number) for number in numbers])
"""
_PROGRAM = """
parts = await asyncio.gather(double(number=1))
return parts
"""


@dataclass(frozen=True)
class Equipment:
    """Settings for each child of a zygote.

    Attributes:
        strict: the system-call filter, or None if a test leaves it out.
        with_rlimits: whether resource limits are set.
        orphans_live: whether a child would outlive its zygote without further measures.
        hooks: called first in each child.
    """

    strict: Filter | None
    with_rlimits: bool
    orphans_live: bool
    hooks: tuple[Hook, ...]


def live(channel: int, equipment: Equipment) -> None:
    """Run the whole life of a child; it ends with the process."""
    os.dup2(channel, CHANNEL)
    os.closerange(CHANNEL + 1, _HIGHEST_DESCRIPTOR)
    if equipment.orphans_live:
        privileges.die_with_parent()
    _reseed()
    for hook in equipment.hooks:
        hook()
    if equipment.with_rlimits:
        limits.limit_child()
    if equipment.strict:
        equipment.strict.install()
    _warm_up()
    _write(_serve(_CHANNEL))
    # The host reads this process's CPU time and memory, then ends it. It must not exit before.
    os.read(CHANNEL, 1)


# `random.seed()` without the part in Python, which touches some 25 more pages.
_reseed = super(random.Random, random._inst).seed


def try_out(hooks: Sequence[Hook], architecture: Architecture) -> None:
    """In a copy of the future zygote: act as a child, with everything that could end one, and run a small function."""
    for hook in hooks:
        hook()
    limits.limit_child()
    Filter(CHILD_RULES, architecture).install()
    _serve(_script(_PLAIN_REQUEST))


def live_unconfined(own_size: int) -> None:
    """Serve one request in a fresh interpreter, with resource limits and nothing else."""
    forget_terminal()
    limits.limit_development()
    _write(_serve(_CHANNEL, own_size))


def rehearse() -> None:
    """Run small functions in the zygote until the interpreter has specialised and cached the code that they need."""
    for _ in range(_REHEARSALS):
        _serve(_script(_PLAIN_REQUEST))
        _serve(_script(_ASYNC_REQUEST))
        _serve(_script(_PROGRAM_REQUEST, _PROGRAM_REPLY))


def _warm_up() -> None:
    """Touch the pages that a function will write to, until a request arrives."""
    if not _channel.poll(_SHORT_IDLE):
        _serve(_script(_PLAIN_REQUEST))
        if not _channel.poll(_LONG_IDLE):
            _serve(_script(_PROGRAM_REQUEST, _PROGRAM_REPLY))


_channel = select.poll()
_channel.register(CHANNEL, select.POLLIN)


def _script(*parts: bytes) -> Line:
    """Return a line on which these parts arrive, and what is sent is lost."""
    return Line(len, iter(parts).__next__)


def _rehearsal(operation: str, source: str, code: bytes, arguments: bytes = b'{"numbers": [1]}') -> bytes:
    """Return a request that changes nothing: its limits are the highest possible."""
    return request.Request(
        operation=operation,
        entrypoint="main",
        allowed=modules.SAFE_IMPORTS,
        check=True,
        max_output=1 << 10,
        max_stdout=1 << 10,
        address_space=limits.HIGHEST,
        data=limits.HIGHEST,
        cpu_seconds=limits.HIGHEST,
        source=source.encode(),
        code=code,
        arguments=arguments,
    ).encode()


_PLAIN_REQUEST = _rehearsal("call", _PLAIN, marshal.dumps(validator.compile_source(_PLAIN)))
_ASYNC_REQUEST = _rehearsal("call", _ASYNC, marshal.dumps(validator.compile_source(_ASYNC)))
_SETTINGS = b"""
{"functions": {"double": ["number"]}, "max_arguments": 1024, "max_waiting": 1, "seed": "", "now": null}
"""
_PROGRAM_REQUEST = _rehearsal("program", _PROGRAM, b"", _SETTINGS)
_REPLY = b"[0, [[1, true, {}]]]"
_PROGRAM_REPLY = wire.RESUME.pack(len(_REPLY)) + _REPLY


def forget_terminal() -> None:
    """Close the standard streams, and remove the interpreter's own handler of SIGINT."""
    sys.stdin = None
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _serve(line: Line, own_size: int = 0) -> bytes:
    """Read a request, apply its limits, and do what it asks; return the reply.

    Args:
        line: the channel, or a script in its place.
        own_size: bytes of address space that the host could not know of.
    """
    order = request.read(line.receive)
    address_space, data = (min(size + own_size, limits.HIGHEST) for size in (order.address_space, order.data))
    limits.limit_call(address_space, data, order.cpu_seconds)
    if order.operation in runner.OPERATIONS:
        return runner.serve(order, line)
    return canary.attempt(order)


def _receive() -> bytes:
    part = os.read(CHANNEL, _CHUNK)
    if not part:
        os._exit(0)
    return part


def _write(reply: bytes) -> None:
    rest = memoryview(reply)
    while rest:
        rest = rest[os.write(CHANNEL, rest) :]


_CHANNEL = Line(_write, _receive)
