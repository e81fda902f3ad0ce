"""The way to a zygote that several processes share: made before they are forked, and known to them alone."""

from __future__ import annotations

import array
import os
import select
import socket

ENTER_SECONDS = 5.0


class Door:
    """Two ends of a socket: processes knock on one, and the zygote admits them at the other.

    Both ends stay open in the process that made it, so that a request that a zygote has not read reaches the next one.
    Other programs do not inherit them.
    """

    def __init__(self) -> None:
        self.entrance, self._outside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._outside.settimeout(ENTER_SECONDS)

    def enter(self, control: socket.socket) -> None:
        """Ask the zygote to serve this process on a connection.

        Args:
            control: the zygote's end of it.

        Raises:
            OSError: the request cannot be sent.
        """
        process = os.pidfd_open(os.getpid())
        try:
            descriptors = array.array("i", [control.fileno(), process])
            self._outside.sendmsg([b"J"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
        finally:
            os.close(process)

    def await_request(self, seconds: float | None = None) -> bool:
        """Wait until a process asks to be served; return False if `seconds` pass before."""
        poll = select.poll()
        poll.register(self.entrance, select.POLLIN)
        return bool(poll.poll(None if seconds is None else seconds * 1000))

    def turn_away(self) -> None:
        """Refuse all processes that wait: they find their connections closed."""
        while self.await_request(0):
            room = socket.CMSG_SPACE(2 * array.array("i").itemsize)
            _, ancillary, _, _ = self.entrance.recvmsg(1, room, socket.MSG_CMSG_CLOEXEC)
            for _, _, content in ancillary:
                for descriptor in array.array("i", content):
                    os.close(descriptor)
