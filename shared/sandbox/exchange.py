"""One call on one child: send the request, watch the limits, collect the reply."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from dataclasses import dataclass

from shared.sandbox.fork_server import ForkServer
from shared.sandbox.outcome import Limits
from shared.sandbox.parked import ParkedChild, Usage
from shared.sandbox.replies import Inbox, Reply

CHUNK = 1 << 16
SMALL_PIECE = 512
"""Bytes. A well-behaved child writes its reply in larger pieces."""
PAUSE = 0.01
"""Seconds without reading after a small piece: otherwise each byte would cost this process as much as the child."""
DEATH_PATIENCE = 5.0
"""Seconds in which a killed process must be gone: the kernel may still free its memory."""

SHORT_CALL = 0.02
"""Seconds after which the zygote is asked to watch the clock too; most calls end before."""


@dataclass(frozen=True)
class Ended:
    """The end of a conversation.

    Attributes:
        reply: the child's reply; None if a time limit ended the conversation.
        limit: "timeout" or "cpu_limit" if one of them was reached.
        duration: seconds of wall time.
        usage: the kernel's counters.
    """

    reply: Reply | None
    limit: str | None
    duration: float
    usage: Usage


class ChildGone(Exception):
    """The child ended before it received the whole request, so that the call has not begun."""


class Conversation:
    """Talks to one child until it has replied or a limit is reached.

    Args:
        child: a child without another user.
        timeout: seconds of wall time.
        cpu_limit: seconds of CPU time.
        limits: bounds of the reply.
    """

    def __init__(self, child: ParkedChild, timeout: float, cpu_limit: float, limits: Limits) -> None:
        self._child = child
        self._cpu_limit = cpu_limit
        self._inbox = Inbox(limits)
        self._started = time.monotonic()
        self._deadline = self._started + timeout
        self._poll = select.poll()
        self._in_time = True

    def hold(self, request: bytes, server: ForkServer) -> Ended:
        """Send the request and wait for the end.

        Raises:
            ChildGone: the child was already dead.
        """
        limit = self._send(request)
        limit = limit or self._receive(server)
        usage = self._child.usage()
        duration = time.monotonic() - self._started
        if limit is not None and self._child.kill():
            self._child.has_ended(DEATH_PATIENCE)
        return Ended(None if limit else self._inbox.reply(), limit, duration, usage)

    def _send(self, request: bytes) -> str | None:
        self._poll.register(self._child.channel, select.POLLOUT)
        rest = memoryview(request)
        while rest:
            try:
                rest = rest[self._child.channel.send(rest) :]
            except BlockingIOError:
                if limit := self._wait(self._is_ready):
                    return limit
            except OSError:
                raise ChildGone from None
        return None

    def _receive(self, server: ForkServer) -> str | None:
        self._poll.modify(self._child.channel, select.POLLIN)
        # A negative timeout would wait indefinitely.
        if not self._poll.poll(max(0.0, min(SHORT_CALL, self._deadline - time.monotonic())) * 1000):
            server.watch(self._child, self._deadline - time.monotonic())
        while True:
            if limit := self._wait(self._is_ready):
                return limit
            try:
                data = self._child.channel.recv(CHUNK)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                # Either the process ended, or it continues silently until its time is up.
                return self._wait(self._child.has_ended)
            if self._inbox.add(data):
                return None
            if len(data) < SMALL_PIECE:
                time.sleep(PAUSE)

    def _is_ready(self, patience: float) -> bool:
        return bool(self._poll.poll(patience * 1000 + 0.5))

    def _wait(self, happened: Callable[[float], bool]) -> str | None:
        """Wait until `happened`, which itself waits for some seconds; return the limit that was reached instead."""
        while True:
            now = time.monotonic()
            # One thread uses at most one second of CPU per second: checking earlier would be pointless.
            spare = self._cpu_limit - self._child.cpu_time() if self._cpu_limit < self._deadline - now else None
            if spare is not None and spare <= 0:
                return "cpu_limit"
            patience = self._deadline - now if spare is None else min(self._deadline - now, spare)
            if patience <= 0:
                # If this process itself was frozen, a reply that arrived during that time arrived in time.
                in_time, self._in_time = self._in_time and happened(0), False
                return None if in_time else "timeout"
            if happened(patience):
                return None
