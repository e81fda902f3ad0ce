"""Judges how a call or a program ended: from the kernel's counters and signals first, then from its own report."""

from __future__ import annotations

import math
import os
import signal
import time
from dataclasses import dataclass

from shared.sandbox.confined.request import Request
from shared.sandbox.exchange import Ended
from shared.sandbox.fork_server import ForkServer, ZygoteLost
from shared.sandbox.insecure import InsecureChild, InsecureServer
from shared.sandbox.outcome import SandboxFault
from shared.sandbox.parked import ParkedChild

MEGABYTE = 1 << 20
PRECISION = 2 * MEGABYTE
"""Bytes by which the kernel's memory counters may be off: each processor updates its own part of them."""
STATUS_PATIENCE = 30.0
"""Seconds in which the zygote must report how a child ended."""

Server = ForkServer | InsecureServer
Child = ParkedChild | InsecureChild


@dataclass(frozen=True)
class Bounds:
    """Limits of one call or program.

    Attributes:
        memory: megabytes that it may add to the interpreter.
        timeout: seconds of wall time.
        cpu: seconds of CPU time.
        subject: "function" or "program", for messages.
    """

    memory: int
    timeout: float
    cpu: float
    subject: str = "function"

    def apply(self, request: Request, child: Child) -> None:
        """Start to count, and add to the request the limits that the kernel enforces."""
        child.begin()
        request.address_space = child.address_space + self.memory * MEGABYTE
        request.data = child.data + self.memory * MEGABYTE
        request.cpu_seconds = math.ceil(min(self.cpu, self.timeout)) + 1


def unavailable(reason: str, subject: str = "function") -> SandboxFault:
    """Return the fault for a shortage that is not the source's."""
    return SandboxFault("unavailable", f"the sandbox cannot run {subject}s at the moment: {reason}")


def judge(ended: Ended, server: Server, child: Child, bounds: Bounds) -> SandboxFault | None:
    """Return the fault of a conversation: the host's own finding, or the one that the child reported."""
    if ended.limit == "timeout":
        return _over("timeout", "is still running after", bounds.timeout, ended.duration, bounds)
    if ended.limit == "cpu_limit":
        return _over("cpu_limit", "used more CPU time than", bounds.cpu, ended.usage.cpu_time, bounds)
    assert ended.reply is not None
    fault = ended.reply.fault
    if ended.usage.peak_memory > bounds.memory * MEGABYTE + PRECISION:
        return _out_of_memory(bounds, ended)
    if fault is None:
        # A well-behaved child waits to be ended, so that its counters can be read.
        return None if ended.usage.alive else _post_mortem(server, child, bounds, ended)
    if fault.type == "timeout":
        return SandboxFault("timeout", fault.message, limit=bounds.timeout, observed=round(ended.duration, 3))
    if fault.type == "memory_limit" or _is_too_large_to_compile(fault, bounds, ended):
        return _out_of_memory(bounds, ended)
    if fault.type == "crashed":
        return _post_mortem(server, child, bounds, ended)
    return fault


def _over(kind: str, what: str, limit: float, observed: float, bounds: Bounds) -> SandboxFault:
    message = f"the {bounds.subject} {what} {limit:g} s"
    return SandboxFault(kind, message, limit=limit, observed=round(observed, 3))


def _out_of_memory(bounds: Bounds, ended: Ended) -> SandboxFault:
    observed = round(max(ended.usage.peak_memory, ended.usage.peak_reserved) / MEGABYTE, 1)
    message = f"the {bounds.subject} needs more memory than its limit of {bounds.memory} MB"
    return SandboxFault("memory_limit", message, limit=bounds.memory, observed=observed)


def _is_too_large_to_compile(fault: SandboxFault, bounds: Bounds, ended: Ended) -> bool:
    """Return whether compiling took much memory: a source that is merely nested too deeply takes little."""
    while_compiling = fault.type == "recursion" and fault.observed is None
    return while_compiling and ended.usage.peak_reserved > bounds.memory * MEGABYTE / 2


def _post_mortem(server: Server, child: Child, bounds: Bounds, ended: Ended) -> SandboxFault:
    """Explain from the signal why a child ended. What was done to its process or zygote is not the source's fault."""
    subject = bounds.subject
    try:
        status = server.status(child, time.monotonic() + STATUS_PATIENCE)  # type: ignore[arg-type]
    except ZygoteLost as error:
        return unavailable(f"the {subject} was ended with its sandbox: {error}", subject)
    if not os.WIFSIGNALED(status):
        return SandboxFault("crashed", f"the {subject}'s process exited with status {os.WEXITSTATUS(status)}")
    number = os.WTERMSIG(status)
    if number == signal.SIGSYS:
        return SandboxFault("security", f"the {subject}'s process was killed for a forbidden system call")
    if number == signal.SIGKILL:
        return _killed(bounds, ended)
    name = signal.strsignal(number)
    return SandboxFault("crashed", f"the {subject}'s process was killed by signal {number} ({name})")


def _killed(bounds: Bounds, ended: Ended) -> SandboxFault:
    # The hard time limit, which applies if this process was too slow to enforce its own.
    if ended.overran:
        return _over("timeout", "is still running after", bounds.timeout, ended.duration, bounds)
    message = (
        f"the {bounds.subject}'s process was killed from outside, most likely because memory ran out on this machine "
        "or in its container: all calls that run at once, each up to its memory_limit, must fit"
    )
    return SandboxFault("unavailable", message)
