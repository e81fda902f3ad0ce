"""Links that lose packets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingUnixStreamServer

import pytest

from tests.chaos.network import NOT_PERMITTED, Link, may_filter

needs_filter = pytest.mark.skipif(not may_filter(), reason=NOT_PERMITTED)
SOON = 0.3


class Echo(StreamRequestHandler):
    def handle(self) -> None:
        while data := self.connection.recv(100):
            self.connection.sendall(data)


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    """Link to an echo server."""
    server = ThreadingUnixStreamServer(str(tmp_path / "s"), Echo)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    with Link(tmp_path / "s") as link:
        yield link
    server.shutdown()
    server.server_close()
    thread.join()


def connect(link: Link) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", link.port), timeout=20)
    connection.sendall(b"hello")
    assert connection.recv(100) == b"hello"
    return connection


@needs_filter
def test_lost_packets_are_not_acknowledged(link: Link) -> None:
    with connect(link) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 200)
        link.lose(to_server=True, to_client=False)
        connection.sendall(b"lost")
        connection.settimeout(60)
        with pytest.raises(TimeoutError, match="timed out") as given_up:
            connection.recv(100)
        assert given_up.value.errno  # by the kernel, because nothing was acknowledged


@pytest.mark.parametrize(
    ("to_server", "to_client"),
    [
        pytest.param(True, False, marks=needs_filter),
        (False, True),
        pytest.param(True, True, marks=needs_filter),
    ],
)
def test_lost_packets_are_transmitted_again_after_the_loss(link: Link, to_server: bool, to_client: bool) -> None:
    with connect(link) as connection:
        link.lose(to_server=to_server, to_client=to_client)
        connection.sendall(b"late")
        connection.settimeout(SOON)
        with pytest.raises(TimeoutError):
            connection.recv(100)
        link.restore()
        connection.settimeout(60)
        assert connection.recv(100) == b"late"


@needs_filter
def test_no_connection_opens_while_packets_are_lost(link: Link) -> None:
    link.lose(to_server=True, to_client=False)
    with pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", link.port), timeout=SOON)
    link.restore()
    connect(link).close()
