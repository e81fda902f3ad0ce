"""The fork server: keeps confined children parked and reports them to the host.

It runs no untrusted code, holds no secret, and can itself open no file and start no program. Each
child inherits the layers, adds the strict filter, and serves one call.
"""

from __future__ import annotations

import _socket
import os
import select
import signal
import socket
import struct
import time
from collections import OrderedDict

from . import child, libc, wire

MAX_REMEMBERED = 1_024
"""Maximum number of ended children whose status is kept until the host asks."""

OVERTIME = 1.0
"""Seconds for which the zygote lets the host end an overdue child first."""

RETRY = 0.05
"""Seconds after which a failed fork of a child, or a look for the end of one, is retried."""

TIDY = 1.0
"""Seconds without an order after which ended children are removed: the next order has not done it."""


class Zygote:
    """Executes the orders on the control socket until the host is gone.

    Every page that this process writes to between two forks has to be copied, because a child shares it: it wakes for
    orders alone, not for the end of each child, and its steps touch few objects.

    Args:
        control: the SOCK_SEQPACKET connection to the host.
        host: a pidfd of the host; readable when it has ended.
        equipment: what each child gets.
    """

    def __init__(self, control: socket.socket, host: int, equipment: child.Equipment) -> None:
        self._control = control
        self._host = host
        self._equipment = equipment
        self._pids: dict[int, int] = {}
        self._numbers: dict[int, int] = {}
        self._deadlines: dict[int, float] = {}
        self._ended: OrderedDict[int, int] = OrderedDict()
        self._asked: set[int] = set()
        self._next = 1
        self._owed = 0
        self._restless = False
        self._poll = select.poll()
        for descriptor in (control.fileno(), host):
            self._poll.register(descriptor, select.POLLIN)

    def serve(self) -> None:
        """Run until the host closes the control socket or ends."""
        while True:
            ready = self._poll.poll(self._patience())
            self._restless = bool(ready)
            for descriptor, _ in ready:
                if descriptor == self._host:
                    return
                order = self._control.recv(wire.ORDER.size)
                if not order:
                    return
                self._obey(*wire.ORDER.unpack(order))
            self._reap()
            if self._deadlines:
                self._end_overdue()
            self._park_owed()

    def _obey(self, order: bytes, number: int, seconds: float) -> None:
        if order == wire.MORE:
            self._owed += number
        elif order == wire.WATCH:
            if number in self._pids:
                self._deadlines[number] = time.monotonic() + seconds + OVERTIME
        elif order == wire.KILL:
            self._kill(number)
        elif order == wire.STATUS:
            self._asked.add(number)
            self._answer(number)

    def _park_owed(self) -> None:
        """Create the children that were ordered.

        If processes or descriptors have run out, the rest waits: the current calls must not fail because of it.

        Raises:
            OSError: there is no room for even one child, and no running child whose end would make room.
        """
        try:
            while self._owed:
                self._park()
                self._owed -= 1
        except OSError:
            if not self._pids:
                raise

    def _park(self) -> None:
        ours, theirs = _socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        pidfd = -1
        try:
            pid = libc.fork()
            if pid == 0:
                try:
                    child.live(theirs.fileno(), self._equipment)
                finally:
                    os._exit(1)
            pidfd = _handle_on(pid)
            number = self._next
            self._next += 1
            self._pids[number], self._numbers[pid] = pid, number
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, _DESCRIPTORS.pack(ours.fileno(), pidfd))
            self._control.sendmsg([wire.NOTICE.pack(wire.PARKED, number, pid)], [rights])
        finally:
            ours.close()
            theirs.close()
            if pidfd >= 0:
                os.close(pidfd)

    def _reap(self) -> None:
        """Remove the children that have ended."""
        while self._numbers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            number = self._numbers.pop(pid)
            del self._pids[number]
            self._deadlines.pop(number, None)
            self._ended[number] = status
            if len(self._ended) > MAX_REMEMBERED:
                self._ended.popitem(last=False)
            self._answer(number)

    def _answer(self, number: int) -> None:
        """Report to the host how a child ended, if the host has asked and the child has ended."""
        if number in self._asked and number not in self._pids:
            self._asked.discard(number)
            status = self._ended.pop(number, 0)
            self._control.send(wire.NOTICE.pack(wire.ENDED, number, status))

    def _kill(self, number: int) -> None:
        # The child has not been reaped yet, so its pid cannot belong to another process.
        if number in self._pids:
            os.kill(self._pids[number], signal.SIGKILL)

    def _patience(self) -> float | None:
        """Return the milliseconds until the next overdue child, or the next attempt to do what is left to do."""
        if self._owed or self._asked:
            seconds = RETRY
        elif self._restless:
            seconds = TIDY
        elif self._deadlines:
            seconds = OVERTIME
        else:
            return None
        if self._deadlines:
            seconds = min(seconds, max(0.0, min(self._deadlines.values()) - time.monotonic()))
        return seconds * 1000 + 1

    def _end_overdue(self) -> None:
        now = time.monotonic()
        for number, deadline in list(self._deadlines.items()):
            if deadline < now:
                self._kill(number)
                del self._deadlines[number]


_DESCRIPTORS = struct.Struct("ii")


def _handle_on(pid: int) -> int:
    """Return a pidfd of a child that was just created; if there is none, the child must not stay.

    Raises:
        OSError: there are no descriptors left.
    """
    try:
        return os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
