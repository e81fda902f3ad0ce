"""The fork server: keeps confined children parked and reports them to the host, or to several processes of it.

It runs no untrusted code, holds no secret, and can itself open no file and start no program. Each
child inherits the layers, adds the strict filter, and serves one call.
"""

from __future__ import annotations

import _socket
import contextlib
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


class Client:
    """One process of the host, and the children that it has ordered.

    Args:
        control: the SOCK_SEQPACKET connection to the process.
        process: a pidfd of it; readable when it has ended.
    """

    def __init__(self, control: socket.socket, process: int) -> None:
        self.control = control
        self.process = process
        self.descriptors = (control.fileno(), process)
        self.owed = 0
        self.deadlines: dict[int, float] = {}
        self._pids: dict[int, int] = {}
        self._ended: OrderedDict[int, int] = OrderedDict()
        self._asked: set[int] = set()

    @property
    def waits(self) -> bool:
        """True if it waits for children, or for news of their ends."""
        return bool(self.owed or self._asked)

    def obey(self, order: bytes, number: int, seconds: float) -> None:
        """Execute one order. It concerns this client's own children only."""
        if order == wire.MORE:
            self.owed += number
        elif order == wire.WATCH:
            if number in self._pids:
                self.deadlines[number] = time.monotonic() + seconds + OVERTIME
        elif order == wire.KILL:
            self.kill(number)
        elif order == wire.STATUS:
            self._asked.add(number)
            self._answer(number)

    def add(self, number: int, pid: int, notice: bytes, descriptors: bytes) -> None:
        """Hand a new child to the client.

        Raises:
            OSError: the client is gone, or does not read its notices.
        """
        self._pids[number] = pid
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)
        try:
            self.control.sendmsg([notice], [rights], socket.MSG_DONTWAIT)
        except OSError:
            self.kill(number)
            raise

    def remove(self, number: int, status: int) -> None:
        """Note that a child has ended."""
        del self._pids[number]
        self.deadlines.pop(number, None)
        self._ended[number] = status
        if len(self._ended) > MAX_REMEMBERED:
            self._ended.popitem(last=False)
        self._answer(number)

    def _answer(self, number: int) -> None:
        """Report to the client how a child ended, if it has asked and the child has ended."""
        if number in self._asked and number not in self._pids:
            self._asked.discard(number)
            status = self._ended.pop(number, 0)
            with contextlib.suppress(OSError):
                self.control.send(wire.NOTICE.pack(wire.ENDED, number, status), socket.MSG_DONTWAIT)

    def kill(self, number: int) -> None:
        """Kill a child."""
        # The child has not been reaped yet, so its pid cannot belong to another process.
        if number in self._pids:
            os.kill(self._pids[number], signal.SIGKILL)

    def end_overdue(self) -> None:
        """Kill the children whose time has passed."""
        now = time.monotonic()
        for number, deadline in list(self.deadlines.items()):
            if deadline < now:
                self.kill(number)
                del self.deadlines[number]

    def close(self) -> None:
        """Kill all children, and forget the client."""
        self.owed = 0
        self.deadlines.clear()
        self._asked.clear()
        for number in self._pids:
            self.kill(number)
        self.control.close()
        os.close(self.process)


class Zygote:
    """Executes the orders of its clients until the host is gone.

    The first client is the host itself; others may join, if the host permits it.

    Every page that this process writes to between two forks has to be copied, because a child shares it: it wakes for
    orders alone, not for the end of each child, and its steps touch few objects.

    Args:
        control: the connection to the host.
        host: a pidfd of the host.
        hello: the notice for clients that join.
        entrance: the SOCK_SEQPACKET socket through which they come; None if none may join.
        equipment: what each child gets.
    """

    def __init__(
        self,
        control: socket.socket,
        host: int,
        hello: bytes,
        entrance: socket.socket | None,
        equipment: child.Equipment,
    ) -> None:
        self._host = Client(control, host)
        self._hello = hello
        self._entrance = entrance
        self._equipment = equipment
        self._clients: list[Client] = []
        self._by_descriptor: dict[int, Client] = {}
        self._children: dict[int, tuple[Client, int]] = {}
        self._next = 1
        self._restless = False
        self._poll = select.poll()
        self._welcome(self._host)

    def serve(self) -> None:
        """Run until the host closes its connection or ends."""
        while True:
            ready = self._poll.poll(self._patience())
            self._restless = bool(ready)
            wanted = False
            for descriptor, _ in ready:
                client = self._by_descriptor.get(descriptor)
                if client is None:
                    wanted = True
                elif not self._attend(client, descriptor):
                    if client is self._host:
                        return
                    self._dismiss(client)
            if wanted:
                # Not earlier: the descriptors of a client that has just gone must not get a new meaning.
                self._admit()
            self._reap()
            for client in self._clients:
                if client.deadlines:
                    client.end_overdue()
                if client.owed:
                    self._park_owed(client)

    def _attend(self, client: Client, descriptor: int) -> bool:
        """Read one order of a client. Return False if the client is gone."""
        if descriptor == client.process:
            return False
        try:
            order = client.control.recv(wire.ORDER.size)
        except OSError:
            return False
        if order[:1] == wire.SHARE and client is self._host and self._entrance is not None:
            self._poll.register(self._entrance, select.POLLIN)
        elif order:
            client.obey(*wire.ORDER.unpack(order))
        return bool(order)

    def _admit(self) -> None:
        """Let a process join: it sends its end of a connection, and a pidfd of itself."""
        try:
            room = socket.CMSG_SPACE(_DESCRIPTORS.size)
            _, ancillary, _, _ = self._entrance.recvmsg(1, room, socket.MSG_DONTWAIT)  # type: ignore[union-attr]
        except OSError:
            return
        descriptors = [each for _, _, content in ancillary for (each,) in _DESCRIPTOR.iter_unpack(content)]
        if len(descriptors) != _DESCRIPTORS.size // _DESCRIPTOR.size:
            # This process has no room for them. The other side finds its connection closed.
            for descriptor in descriptors:
                os.close(descriptor)
            return
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=descriptors[0])
        client = Client(control, descriptors[1])
        try:
            control.send(self._hello, socket.MSG_DONTWAIT)
        except OSError:
            client.close()
        else:
            self._welcome(client)

    def _welcome(self, client: Client) -> None:
        self._clients.append(client)
        for descriptor in client.descriptors:
            self._by_descriptor[descriptor] = client
            self._poll.register(descriptor, select.POLLIN)

    def _dismiss(self, client: Client) -> None:
        """Forget a client that is gone. No child outlives the process that it serves."""
        self._clients.remove(client)
        for descriptor in client.descriptors:
            del self._by_descriptor[descriptor]
            self._poll.unregister(descriptor)
        client.close()

    def _park_owed(self, client: Client) -> None:
        """Create the children that a client has ordered.

        If processes or descriptors have run out, the rest waits: the current calls must not fail because of it.

        Raises:
            OSError: there is no room for even one child, and no running child whose end would make room.
        """
        try:
            while client.owed:
                self._park(client)
                client.owed -= 1
        except OSError:
            if not self._children:
                raise

    def _park(self, client: Client) -> None:
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
            self._children[pid] = client, number
            notice = wire.NOTICE.pack(wire.PARKED, number, pid)
            client.add(number, pid, notice, _DESCRIPTORS.pack(ours.fileno(), pidfd))
        finally:
            ours.close()
            theirs.close()
            if pidfd >= 0:
                os.close(pidfd)

    def _reap(self) -> None:
        """Remove the children that have ended."""
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            client, number = self._children.pop(pid)
            client.remove(number, status)

    def _patience(self) -> float | None:
        """Return the milliseconds until the next overdue child, or the next attempt to do what is left to do."""
        deadlines = [deadline for client in self._clients for deadline in client.deadlines.values()]
        seconds = [max(0.0, min(deadlines) - time.monotonic())] if deadlines else []
        if any(client.waits for client in self._clients):
            seconds.append(RETRY)
        elif self._restless:
            seconds.append(TIDY)
        return min(seconds) * 1000 + 1 if seconds else None


_DESCRIPTOR = struct.Struct("i")
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
