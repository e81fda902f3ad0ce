"""Outbound requests: permitted addresses in every spelling, and the time limit of an exchange."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx2
import pytest

from shared.errors import ForbiddenAddress, InvalidInput, Unavailable
from shared.outbound import AddressGuard, GuardedTransport, checked_url

PUBLIC = ("93.184.215.14", "2606:4700::1111", "8.8.8.8")
Answer = Callable[[socket.socket], None]


@contextmanager
def listening(answer: Answer, family: socket.AddressFamily = socket.AF_INET, host: str = "127.0.0.1") -> Iterator[int]:
    """Serve a free port that accepts any number of connections; `answer` handles each of them."""
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind((host, 0))
        listener.listen()

        def treat(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                answer(connection)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=treat, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def answering(response: bytes) -> Answer:
    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(response)

    return answer


OK = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")


def resolver_returning(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Make the resolver return these answers in turn, then the last one repeatedly. Return the names it resolves."""
    asked: list[str] = []

    def resolve(host: str, port: Any, *args: Any, **options: Any) -> list[Any]:
        if host.replace(".", "").isdigit() or ":" in host:
            return real(host, port, *args, **options)
        asked.append(host)
        chosen = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in chosen]

    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return asked


# ----------------------------------------------------------------------------------------------- the URL's form


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://example.com/", "must begin with http"),
        ("file:///etc/passwd", "must begin with http"),
        ("//example.com/", "must begin with http"),
        ("example.com", "must begin with http"),
        ("", "must begin with http"),
        ("http://", "its host is neither"),
        ("http:///path", "its host is neither"),
        ("http://a b/", "its host is neither"),
        ("http://%31%32%37.0.0.1/", "its host is neither"),
        ("http://localhost%2e/", "its host is neither"),
        ("http://[::1%lo]/", "its host is neither"),
        ("http://[fe80::1%25eth0]/", "its host is neither"),
        ("http://" + "a" * 300, "its host is neither"),
        ("http://user:secret@example.com/", "remove them"),
        ("http://token@example.com/", "remove them"),
        ("http://example.com\\@127.0.0.1/", "remove them"),
        ("http://1.1.1.1 &@2.2.2.2# @3.3.3.3/", "remove them"),
        ("http://example.com:0/", "0 is not a port"),
        ("http://example.com:65536/", "65536 is not a port"),
        ("http://example.com:80:80/", "Invalid URL"),
        ("http://[v1.a]/", "Invalid URL"),
        ("http://0177.0.0.1/", "Invalid URL"),
        ("http://①27.0.0.1/", "Invalid URL"),
        ("http://ⓛocalhost/", "Invalid URL"),
        ("http://example.com/\r\nX: y", "Invalid URL"),
        ("http://127.0.0.1\t/", "Invalid URL"),
    ],
)
def test_invalid_url_is_refused_without_quoting_it(url: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        checked_url(url)
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://example.com/hook?a=b", b"example.com"),
        ("HTTP://EXAMPLE.COM:8080", b"example.com"),
        ("https://münchen.example/", b"xn--mnchen-3ya.example"),
        ("https://xn--mnchen-3ya.example/", b"xn--mnchen-3ya.example"),
        ("http://[2606:4700::1111]:8080/", b"2606:4700::1111"),
        ("http://my_service/", b"my_service"),
        ("http://example.com./", b"example.com."),
    ],
)
def test_host_of_url_is_normalized(url: str, host: bytes) -> None:
    assert checked_url(url).raw_host == host


# ---------------------------------------------------------------------------------------- permitted addresses


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.255.255.254/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.0.0.1/",
        "http://017700000001/",
        "http://127。0。0。1/",
        "http://localhost/",
        "http://LOCALHOST/",
        "http://0/",
        "http://0.0.0.0/",
        "http://10.1.2.3/",
        "http://172.16.0.1/",
        "http://192.168.1.1/",
        "http://100.64.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://168.63.129.16/",
        "http://192.0.0.9/",
        "http://198.18.0.1/",
        "http://203.0.113.1/",
        "http://224.0.0.1/",
        "http://240.0.0.1/",
        "http://255.255.255.255/",
        "http://[::1]/",
        "http://[::]/",
        "http://[0:0:0:0:0:0:0:1]/",
        "http://[::127.0.0.1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://[64:ff9b::10.0.0.1]/",
        "http://[64:ff9b:1::1]/",
        "http://[2002:7f00:1::]/",
        "http://[2001:db8::1]/",
        "http://[2001::1]/",
        "http://[3fff::1]/",
        "http://[fc00::1]/",
        "http://[fd00:ec2::254]/",
        "http://[fe80::1]/",
        "http://[fec0::1]/",
        "http://[ff02::1]/",
        "http://[4000::1]/",
    ],
)
def test_private_address_is_refused_in_every_spelling(url: str) -> None:
    checked = checked_url(url)
    with pytest.raises(ForbiddenAddress, match="MINION_ALLOW_PRIVATE_ADDRESSES"):
        AddressGuard().resolve(checked.raw_host.decode(), 80)
    transport = GuardedTransport(AddressGuard(), seconds=5)
    with httpx2.Client(transport=transport, trust_env=False) as client, pytest.raises(ForbiddenAddress):
        client.get(url)


def test_trailing_dot_does_not_bypass_the_guard() -> None:
    with pytest.raises((ForbiddenAddress, Unavailable)):  # some resolvers do not know the name in this form
        AddressGuard().resolve("localhost.", 80)


@pytest.mark.parametrize("address", [*PUBLIC, "64:ff9b::8.8.8.8", "::ffff:8.8.8.8"])
def test_public_addresses_are_permitted(address: str) -> None:
    assert [str(found) for found in AddressGuard().resolve(address, 443)]


def test_one_private_address_among_several_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver_returning(monkeypatch, [PUBLIC[0], "10.0.0.1"])
    with pytest.raises(ForbiddenAddress, match=r"mixed\.example \(10\.0\.0\.1\) is not a public address"):
        AddressGuard().resolve("mixed.example", 80)


def test_unresolvable_name_is_unavailable() -> None:
    with pytest.raises(Unavailable, match=r"'nobody\.invalid' cannot be resolved"):
        AddressGuard().resolve("nobody.invalid", 80)


@pytest.mark.parametrize(
    ("allowed", "permitted", "refused"),
    [
        ("127.0.0.0/8", "127.0.0.1", "10.0.0.1"),
        ("127.0.0.0/8", "::ffff:127.0.0.1", "::1"),
        ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
        ("fd00:1::/32", "fd00:1::5", "fd00:2::5"),
    ],
)
def test_operator_can_allow_networks(allowed: str, permitted: str, refused: str) -> None:
    guard = AddressGuard.allowing([allowed])
    assert guard.resolve(permitted, 80)
    with pytest.raises(ForbiddenAddress):
        guard.resolve(refused, 80)


def test_operator_can_allow_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver_returning(monkeypatch, ["10.0.0.1"])
    guard = AddressGuard.allowing(["Hooks.Internal"])
    for name in ("hooks.internal", "HOOKS.internal."):
        assert [str(address) for address in guard.resolve(name, 80)] == ["10.0.0.1"]
    with pytest.raises(ForbiddenAddress):
        guard.resolve("other.internal", 80)


# --------------------------------------------------------------------------------------------- the connection


def fetch(url: str, *allowed: str, seconds: float = 5.0, **options: Any) -> httpx2.Response:
    transport = GuardedTransport(AddressGuard.allowing(allowed), seconds=seconds)
    with httpx2.Client(transport=transport, trust_env=False, timeout=seconds, **options) as client:
        return client.get(url)


def test_connection_uses_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that resolves to a permitted address when it is checked is not resolved again."""
    with listening(OK) as port:
        asked = resolver_returning(monkeypatch, ["127.0.0.1"], ["10.255.255.1"])
        answer = fetch(f"http://rebinding.example:{port}/", "127.0.0.0/8")
    assert (answer.text, asked) == ("hello", ["rebinding.example"])


def test_next_address_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(OK) as port:
        resolver_returning(monkeypatch, ["127.0.0.2", "127.0.0.1"])
        assert fetch(f"http://two.example:{port}/", "127.0.0.0/8").text == "hello"


def test_host_header_names_the_requested_host(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        heard.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    with listening(answer) as port:
        resolver_returning(monkeypatch, ["127.0.0.1"])
        assert fetch(f"http://named.example:{port}/a?b=c", "127.0.0.1").status_code == 204
    assert heard[0].startswith(b"GET /a?b=c HTTP/1.1\r\n")
    assert f"host: named.example:{port}".encode() in heard[0].lower()


def test_every_redirect_is_checked() -> None:
    redirect = answering(b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n")
    with listening(redirect) as port:
        url = f"http://127.0.0.1:{port}/"
        assert fetch(url, "127.0.0.1").status_code == 302
        with pytest.raises(ForbiddenAddress, match=r"169\.254\.169\.254"):
            fetch(url, "127.0.0.1", follow_redirects=True)


def test_refused_connection_is_a_connect_error() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(httpx2.ConnectError):
            fetch(f"http://127.0.0.1:{closed.getsockname()[1]}/", "127.0.0.1")


def dripping(beginning: bytes) -> Answer:
    """Send a byte now and then, indefinitely."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(beginning)
        while True:
            connection.sendall(b"x")
            time.sleep(0.1)

    return answer


def silent(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


DRIPPED_HEADER = dripping(b"HTTP/1.1 200 OK\r\nX-Long: ")
DRIPPED_BODY = dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")


@pytest.mark.parametrize("answer", [DRIPPED_HEADER, DRIPPED_BODY, silent])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_time_limit_covers_the_whole_exchange(answer: Answer, scheme: str) -> None:
    with listening(answer) as port:
        began = time.monotonic()
        with pytest.raises(httpx2.TransportError):
            fetch(f"{scheme}://127.0.0.1:{port}/", "127.0.0.1", seconds=0.7)
        assert time.monotonic() - began < 15


def test_non_http_reply_is_a_protocol_error() -> None:
    with listening(answering(b"220 smtp ready\r\n")) as port, pytest.raises(httpx2.RemoteProtocolError):
        fetch(f"http://127.0.0.1:{port}/", "127.0.0.1")
