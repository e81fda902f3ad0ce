"""The fork server: keeps confined children parked and reports them to the host.

It runs no untrusted code, holds no secret, and can itself open no file and start no program. Each
child inherits the layers, adds the strict filter, and serves one call.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections import OrderedDict
from dataclasses import dataclass

from . import child, libc, wire

MAX_REMEMBERED = 1_024
"""Maximum number of ended children whose status is kept until the host asks."""

OVERTIME = 1.0
"""Seconds for which the zygote lets the host end an overdue child first."""

RETRY = 0.05
"""Seconds after which a failed fork of a child is retried."""


@dataclass
class _Child:
    number: int
    pid: int
    pidfd: int
    deadline: float | None = None


class Zygote:
    """Executes the orders on the control socket until the host is gone.

    Args:
        control: the SOCK_SEQPACKET connection to the host.
        host: a pidfd of the host; readable when it has ended.
        equipment: what each child gets.
    """

    def __init__(self, control: socket.socket, host: int, equipment: child.Equipment) -> None:
        self._control = control
        self._host = host
        self._equipment = equipment
        self._children: dict[int, _Child] = {}
        self._by_pidfd: dict[int, _Child] = {}
        self._ended: OrderedDict[int, int] = OrderedDict()
        self._asked: set[int] = set()
        self._next = 1
        self._owed = 0
        self._poll = select.poll()
        for descriptor in (control.fileno(), host):
            self._poll.register(descriptor, select.POLLIN)

    def serve(self) -> None:
        """Run until the host closes the control socket or ends."""
        while True:
            for descriptor, _ in self._poll.poll(self._patience()):
                if descriptor == self._host:
                    return
                if descriptor == self._control.fileno():
                    order = self._control.recv(wire.MAX_CONTROL)
                    if not order:
                        return
                    self._obey(*wire.ORDER.unpack(order))
                else:
                    self._reap(self._by_pidfd[descriptor])
            self._end_overdue()
            self._park_owed()

    def _obey(self, order: bytes, number: int, seconds: float) -> None:
        if order == wire.WATCH:
            if number in self._children:
                self._children[number].deadline = time.monotonic() + seconds + OVERTIME
        elif order == wire.MORE:
            self._owed += 1
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
            if not self._children:
                raise

    def _park(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            pid = libc.fork()
            if pid == 0:
                try:
                    child.live(theirs.fileno(), self._equipment)
                finally:
                    os._exit(1)
            born = _Child(self._next, pid, _handle_on(pid))
            self._next += 1
            self._children[born.number] = self._by_pidfd[born.pidfd] = born
            self._poll.register(born.pidfd, select.POLLIN)
            notice = wire.NOTICE.pack(wire.PARKED, born.number, pid)
            socket.send_fds(self._control, [notice], [ours.fileno(), born.pidfd])

    def _reap(self, dead: _Child) -> None:
        self._poll.unregister(dead.pidfd)
        os.close(dead.pidfd)
        del self._children[dead.number], self._by_pidfd[dead.pidfd]
        _, self._ended[dead.number] = os.waitpid(dead.pid, 0)
        if len(self._ended) > MAX_REMEMBERED:
            self._ended.popitem(last=False)
        self._answer(dead.number)

    def _answer(self, number: int) -> None:
        """Report to the host how a child ended, if the host has asked and the child has ended."""
        if number in self._asked and number not in self._children:
            self._asked.discard(number)
            status = self._ended.pop(number, 0)
            self._control.send(wire.NOTICE.pack(wire.ENDED, number, status))

    def _kill(self, number: int) -> None:
        # The child has not been reaped yet, so its pid cannot belong to another process.
        if number in self._children:
            os.kill(self._children[number].pid, signal.SIGKILL)

    def _patience(self) -> float | None:
        """Return the milliseconds until the next overdue child, or the next attempt to create one."""
        now = time.monotonic()
        deadlines = [each.deadline for each in self._children.values() if each.deadline is not None]
        if self._owed:
            deadlines.append(now + RETRY)
        return max(0.0, min(deadlines) - now) * 1000 + 1 if deadlines else None

    def _end_overdue(self) -> None:
        now = time.monotonic()
        for each in self._children.values():
            if each.deadline is not None and each.deadline < now:
                os.kill(each.pid, signal.SIGKILL)
                each.deadline = None


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
