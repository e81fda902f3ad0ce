"""Talking to one child: send a message, watch the limits, collect the reply."""

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

HOST_DELAY = 1.0
"""Seconds of one exchange in which the child did not compute, and which may be this process's own: it may have other
work, or no processor. They do not count to the time limit of the exchanges after it.
"""
SUSPENDED = 86_400.0
"""Seconds after which the zygote ends a program to which the host has not come back."""
SHORT_CALL = 0.02
"""Seconds after which the zygote is asked to watch the clock too; most calls end before."""


@dataclass(frozen=True)
class Ended:
    """The end of a conversation.

    Attributes:
        reply: the child's reply; None if a time limit ended the conversation.
        limit: "timeout" or "cpu_limit" if one of them was reached.
        overran: whether the last exchange ended at its deadline or later.
        duration: seconds of wall time.
        usage: the kernel's counters.
    """

    reply: Reply | None
    limit: str | None
    overran: bool
    duration: float
    usage: Usage


class ChildGone(Exception):
    """The child ended before it received the whole request, so that the call has not begun."""


class Conversation:
    """Talks to one child until a limit is reached.

    Each message has one reply. The time in between, which is the host's, does not count. Within an exchange, the CPU
    time counts, and any other time beyond `HOST_DELAY`.

    Args:
        child: a child without another user.
        timeout: seconds of wall time in all.
        cpu_limit: seconds of CPU time.
    """

    def __init__(self, child: ParkedChild, timeout: float, cpu_limit: float) -> None:
        self._child = child
        self._cpu_limit = cpu_limit
        self._timeout = timeout
        self._deadline = 0.0
        self._poll = select.poll()
        self._in_time = True
        self._is_watched = False
        self._charged = 0.0
        self._overran = False
        self.duration = 0.0

    def hold(self, request: bytes, server: ForkServer, limits: Limits) -> Ended:
        """Send the request of a call and wait for its end.

        Raises:
            ChildGone: the child was already dead.
        """
        inbox = Inbox(limits)
        limit = self.exchange(request, server, inbox)
        return self.end(limit, None if limit else inbox.reply())

    def exchange(self, message: bytes, server: ForkServer, inbox: Inbox) -> str | None:
        """Send a message and fill the inbox with the reply; return the limit that was reached instead.

        Raises:
            ChildGone: the child has ended before it received the message.
        """
        started = time.monotonic()
        self._deadline = started + self._timeout - self._charged
        self._in_time = True
        cpu_before = self._child.cpu_time()
        if cpu_before > self._cpu_limit:
            return "cpu_limit"
        try:
            return self._send(message) or self._receive(server, inbox)
        finally:
            now, computed = time.monotonic(), self._child.cpu_time() - cpu_before
            taken, self._overran = now - started, now >= self._deadline
            self.duration += taken
            self._charged += max(computed, taken - HOST_DELAY)

    def end(self, limit: str | None, reply: Reply | None) -> Ended:
        """Read the counters; after a limit, kill the child."""
        usage = self._child.usage()
        if limit is not None and self._child.kill():
            self._child.has_ended(DEATH_PATIENCE)
        return Ended(reply, limit, self._overran, self.duration, usage)

    def is_interrupted(self) -> bool:
        """Return whether the child did something between two exchanges, when it had to wait."""
        self._poll.register(self._child.channel, select.POLLIN)
        return bool(self._poll.poll(0))

    def suspend(self, server: ForkServer) -> None:
        """Let the child wait for the next message, however long it takes."""
        if self._is_watched:
            server.watch(self._child, SUSPENDED)
            self._is_watched = False

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

    def _receive(self, server: ForkServer, inbox: Inbox) -> str | None:
        self._poll.modify(self._child.channel, select.POLLIN)
        # A negative timeout would wait indefinitely.
        if not self._poll.poll(max(0.0, min(SHORT_CALL, self._deadline - time.monotonic())) * 1000):
            server.watch(self._child, self._deadline - time.monotonic())
            self._is_watched = True
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
            if inbox.add(data):
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
