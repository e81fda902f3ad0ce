"""Canaries: at every start, confined children try to escape. The sandbox serves only if all of them fail."""

from __future__ import annotations

import math
import os
import signal
import time

from shared.sandbox.confined import canary
from shared.sandbox.confined.request import Request
from shared.sandbox.exchange import ChildGone, Conversation, Ended
from shared.sandbox.fork_server import ForkServer, ZygoteLost
from shared.sandbox.outcome import Limits

PATIENCE = 10.0
CANARY_MEMORY = 64 << 20


def failures(server: ForkServer, limits: Limits) -> list[str]:
    """Return the attempts that the confinement did not stop.

    Raises:
        ZygoteLost: a canary did not answer, which says nothing about the confinement: descriptors or processes
            may have run out temporarily.
    """
    try:
        found = _polite(server, limits)
        for name in canary.FATAL:
            if not _is_fatal(server, limits, name):
                found.append(name)
    except (ZygoteLost, ChildGone) as error:
        reason = str(error) or "it was gone"
        raise ZygoteLost(f"a canary of the self-test could not be asked: {reason}") from None
    return found


def _polite(server: ForkServer, limits: Limits) -> list[str]:
    ended, status = _send(server, limits, "canary")
    if ended.reply is None or not isinstance(ended.reply.value, list):
        return [f"no answer (status {status})"]
    return [str(name) for name in ended.reply.value]


def _is_fatal(server: ForkServer, limits: Limits, name: str) -> bool:
    _, status = _send(server, limits, name)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSYS


def _send(server: ForkServer, limits: Limits, operation: str) -> tuple[Ended, int]:
    """Let one canary try; return its reply, and how it ended if there is none."""
    child = server.take(time.monotonic() + PATIENCE)
    try:
        child.begin()
        request = Request(
            operation=operation,
            entrypoint="",
            allowed=frozenset(),
            check=False,
            max_output=limits.output,
            max_stdout=limits.stdout,
            address_space=child.address_space + CANARY_MEMORY,
            data=child.data + CANARY_MEMORY,
            cpu_seconds=int(PATIENCE),
        )
        ended = Conversation(child, PATIENCE, math.inf).hold(request.encode(), server, limits)
        if ended.reply is not None and ended.reply.fault is None:
            return ended, 0
        return ended, server.status(child, time.monotonic() + PATIENCE)
    finally:
        server.end(child)
