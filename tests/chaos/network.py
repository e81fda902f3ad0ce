"""TCP link to a server's Unix socket that loses packets on demand, as a broken network does.

Most kernels permit this to every user; some require CAP_NET_ADMIN for the loss towards the server.

Towards the server, a socket filter in the kernel drops every segment before TCP sees it: nothing is acknowledged, not
even a SYN, and the sender's own time-outs have to notice. Towards the client, nothing is sent. When the loss is over,
data that neither side has given up is transmitted again, and the connection continues.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
# struct sock_fprog with one instruction of classic BPF: return 0, which keeps no byte of the packet.
DROP = ctypes.create_string_buffer(struct.pack("HBBI", 0x6, 0, 0, 0))
DROP_ALL = struct.pack("HL", 1, ctypes.addressof(DROP))
NOT_PERMITTED = "this kernel requires CAP_NET_ADMIN for a socket filter"
CHUNK = 1 << 16


def may_filter() -> bool:
    """Return whether this process may attach a filter to a socket, and so lose packets towards a server."""
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, DROP_ALL)
        except PermissionError:
            return False
    return True


class Link:
    """Thread that forwards connections from a loopback port to a Unix socket."""

    def __init__(self, server: Path) -> None:
        self.server = server
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"link to {server.name}", daemon=True)
        self._sockets: set[Any] = set()
        self._clients: set[asyncio.StreamWriter] = set()
        self._deaf = False
        self._towards_client = asyncio.Event()
        self._towards_client.set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._listener = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._forward, "127.0.0.1", 0), self._loop
        ).result()
        self._sockets.add(self._listener.sockets[0])
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def lose(self, *, to_server: bool, to_client: bool) -> None:
        """Lose all packets of these directions from now on.

        Raises:
            PermissionError: `to_server`, and the kernel refuses the filter; see `may_filter`.
        """
        self._call(lambda: self._lose(to_server, to_client))

    def restore(self) -> None:
        """Stop losing packets."""
        self._call(lambda: self._lose(False, False))

    def _call(self, action: Callable[[], None]) -> None:
        async def act() -> None:
            action()

        asyncio.run_coroutine_threadsafe(act(), self._loop).result()

    def _lose(self, to_server: bool, to_client: bool) -> None:
        self._deaf = to_server
        for one in self._sockets:
            self._filter(one)
        if to_client:
            self._towards_client.clear()
        else:
            self._towards_client.set()

    def _filter(self, one: Any) -> None:
        option, value = (SO_ATTACH_FILTER, DROP_ALL) if self._deaf else (SO_DETACH_FILTER, 0)
        try:
            one.setsockopt(socket.SOL_SOCKET, option, value)
        except PermissionError:
            if self._deaf:
                raise
        except OSError:  # closed in the meantime, or it had no filter
            pass

    async def _forward(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        connection = to_client.get_extra_info("socket")
        self._sockets.add(connection)
        self._clients.add(to_client)
        self._filter(connection)  # a connection that was accepted during a loss
        try:
            with suppress(OSError):  # the server is unavailable: the connection ends
                from_server, to_server = await asyncio.open_unix_connection(self.server)
                pumps = [
                    asyncio.ensure_future(self._pump(from_client, to_server, None)),
                    asyncio.ensure_future(self._pump(from_server, to_client, self._towards_client)),
                ]
                try:
                    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pump in pumps:
                        pump.cancel()
                    await _closed(to_server)
            await self._towards_client.wait()  # the end of the connection is lost too
        finally:
            self._sockets.discard(connection)
            await _closed(to_client)
            self._clients.discard(to_client)

    async def _pump(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, gate: asyncio.Event | None
    ) -> None:
        with suppress(OSError):
            while data := await source.read(CHUNK):
                if gate is not None:
                    await gate.wait()
                target.write(data)
                await target.drain()

    async def _close(self) -> None:
        self._listener.close()
        self._lose(False, False)
        # A connection may just have been accepted, or wait for a client that reads no more.
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for client in self._clients:
                client.transport.abort()
            await asyncio.wait(others, timeout=0.1)


async def _closed(end: asyncio.StreamWriter) -> None:
    end.close()
    with suppress(OSError):
        await end.wait_closed()
