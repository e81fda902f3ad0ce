"""HTTP to addresses that users provide: webhooks, and tools that fetch.

A user-provided address must not reach services that only this machine can reach: its own ports, the private network,
the cloud's metadata service. So names are resolved here, every resulting address is checked, and the connection is
made to a checked address: a name that resolves to something else a moment later gains nothing. Every request is
checked again, and so is every hop of a redirect that a client follows.

    with guarded_client(settings, seconds=10) as client:
        client.post("https://example.com/hook", json={})

A time-out here limits the whole exchange, so that no peer can hold a thread by sending a byte now and then. Only the
resolver has separate limits (`/etc/resolv.conf`).
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import httpcore2
import httpx2

from shared.errors import ForbiddenAddress, InvalidInput, Unavailable
from shared.settings import Settings

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

SCHEMES = ("http", "https")
HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_.])?")
# Ranges that Python releases classify differently, and Azure's host agent, whose address looks public.
NEVER_PUBLIC = tuple(ip_network(block) for block in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "3fff::/20"))
GLOBAL_UNICAST = ip_network("2000::/3")
NAT64 = ip_network("64:ff9b::/96")
TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which a later attempt may succeed."""
NOT_TAKEN = frozenset({429, 503})
"""With these, the server says that it did nothing, so even an unsafe request may be repeated."""
NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)
"""Errors of requests that no server has received."""
HTTPCORE_ERRORS = (
    httpcore2.TimeoutException,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.UnsupportedProtocol,
)


def checked_url(url: str | httpx2.URL) -> httpx2.URL:
    """Check the form of a URL: http or https, a host, no credentials.

    Raises:
        InvalidInput: the URL is invalid; the message does not repeat it, because it may contain a password.
    """
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError, TypeError) as error:
        raise InvalidInput(f"Invalid URL: {error}.") from None
    if parsed.scheme not in SCHEMES:
        raise InvalidInput("Invalid URL: it must begin with http:// or https://.")
    if parsed.userinfo:
        raise InvalidInput("The URL contains a user or a password, which logs would show: remove them.")
    if parsed.port is not None and not 0 < parsed.port < 65536:
        raise InvalidInput(f"Invalid URL: {parsed.port} is not a port.")
    host = parsed.raw_host.decode("ascii")
    if not HOST.fullmatch(host) and not _is_ipv6(host):
        raise InvalidInput("Invalid URL: its host is neither a name nor an address.")
    return parsed


@dataclass(frozen=True, slots=True)
class AddressGuard:
    """Decides which addresses may be reached: public ones, and those that the operator allows.

    Attributes:
        networks: blocks that are allowed as well.
        hosts: names that are allowed regardless of their addresses.
    """

    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()

    @classmethod
    def allowing(cls, entries: Iterable[str]) -> AddressGuard:
        """Create a guard with exceptions: networks such as `10.1.0.0/16`, addresses, and host names."""
        networks, hosts = [], set()
        for entry in entries:
            try:
                networks.append(ip_network(entry))
            except ValueError:
                hosts.add(_canonical(entry))
        return cls(tuple(networks), frozenset(hosts))

    def resolve(self, host: str, port: int) -> list[Address]:
        """Return the addresses of a host, all of them checked. The resolver itself reads every spelling of a number.

        Raises:
            ForbiddenAddress: one of the addresses must not be reached.
            Unavailable: the name cannot be resolved.
        """
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise Unavailable(f"The host {host!r} cannot be resolved: {reason}. Check its spelling.") from None
        addresses = list(dict.fromkeys(ip_address(info[4][0]) for info in found))
        if _canonical(host) not in self.hosts:
            for address in addresses:
                self._check(host, address)
        return addresses

    def _check(self, host: str, address: Address) -> None:
        candidates = [address, *_inside(address)]
        if all(_is_public(candidate) for candidate in candidates):
            return
        if any(candidate in network for candidate in candidates for network in self.networks):
            return
        what = host if host == str(address) else f"{host} ({address})"
        raise ForbiddenAddress(
            f"{what} is not a public address, and only those may be reached. If it is intended, the operator must "
            "list its network or host in MINION_ALLOW_PRIVATE_ADDRESSES."
        )


class GuardedTransport(httpx2.BaseTransport):
    """A transport that reaches permitted addresses only. Each request has its own connection.

    Apart from the client's own errors, requests raise `InvalidInput`, `ForbiddenAddress` and `Unavailable`.
    """

    def __init__(self, guard: AddressGuard, *, seconds: float) -> None:
        """Configure the transport; nothing is sent yet.

        Args:
            seconds: limit for a request and its response, from connecting to the last byte.
        """
        self.guard = guard
        self.seconds = seconds

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request."""
        url = checked_url(request.url)
        pool = httpcore2.ConnectionPool(
            ssl_context=_tls(), network_backend=_GuardedBackend(self.guard, _Deadline(self.seconds))
        )
        plain = httpcore2.Request(
            method=request.method,
            url=httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        try:
            with _httpx_errors():
                response = pool.handle_request(plain)
        except BaseException:
            pool.close()
            raise
        return httpx2.Response(
            response.status,
            headers=response.headers,
            stream=_Body(response.stream, pool),  # type: ignore[arg-type]  # of a synchronous pool
            extensions=response.extensions,
        )


def guarded_client(settings: Settings, *, seconds: float, **options: Any) -> httpx2.Client:
    """Create an HTTP client for addresses that users provide. It follows no redirects and uses no proxy.

    Args:
        seconds: limit for a request and its response.
        options: more arguments of `httpx2.Client`.
    """
    guard = AddressGuard.allowing(settings.allow_private_addresses)
    return httpx2.Client(
        transport=GuardedTransport(guard, seconds=seconds), timeout=seconds, trust_env=False, **options
    )


def read_body(response: httpx2.Response, most: int) -> bytes | None:
    """Return the body of a streamed response; None if it has more than `most` bytes."""
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > most:
            return None
    return bytes(body)


class _Deadline:
    """The time at which an exchange must be over."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.ends = time.monotonic() + seconds

    def bound(self, timeout: float | None) -> float:
        """Return the seconds that one operation may take."""
        left = self.ends - time.monotonic()
        if left <= 0:
            raise httpcore2.TimeoutException(f"not finished within {self.seconds:g} s")
        return left if timeout is None else min(timeout, left)


class _GuardedBackend(httpcore2.NetworkBackend):
    """Network backend that connects to the checked addresses, one after the other."""

    def __init__(self, guard: AddressGuard, deadline: _Deadline) -> None:
        self.guard = guard
        self.deadline = deadline
        self.plain = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = (),
    ) -> httpcore2.NetworkStream:
        *others, last = self.guard.resolve(host, port)
        for address in others:
            try:
                return self._connect(address, port, timeout)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        return self._connect(last, port, timeout)

    def _connect(self, address: Address, port: int, timeout: float | None) -> httpcore2.NetworkStream:
        stream = self.plain.connect_tcp(str(address), port, self.deadline.bound(timeout), socket_options=())
        return _BoundedStream(stream, self.deadline)


class _BoundedStream(httpcore2.NetworkStream):
    """A connection whose operations all end by the deadline."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: _Deadline) -> None:
        self.stream = stream
        self.deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.stream.read(max_bytes, self.deadline.bound(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.stream.write(buffer, self.deadline.bound(timeout))

    def close(self) -> None:
        self.stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        encrypted = self.stream.start_tls(ssl_context, server_hostname, self.deadline.bound(timeout))
        return _BoundedStream(encrypted, self.deadline)

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


class _Body(httpx2.SyncByteStream):
    """A response's body; its connection is closed with it."""

    def __init__(self, chunks: Iterable[bytes], pool: httpcore2.ConnectionPool) -> None:
        self.chunks = chunks
        self.pool = pool

    def __iter__(self) -> Iterator[bytes]:
        with _httpx_errors():
            yield from self.chunks

    def close(self) -> None:
        getattr(self.chunks, "close", lambda: None)()
        self.pool.close()


@contextmanager
def _httpx_errors() -> Iterator[None]:
    """Translate the lower library's errors to the client's, which have the same names."""
    try:
        yield
    except HTTPCORE_ERRORS as error:
        kind = getattr(httpx2, type(error).__name__, httpx2.TransportError)
        raise kind(str(error)) from error


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """Return the TLS context. It is cached: reading the certificates takes longer than a request."""
    return httpx2.create_ssl_context()


def _is_public(address: Address) -> bool:
    if any(address in network for network in NEVER_PUBLIC):
        return False
    if isinstance(address, IPv4Address):
        return address.is_global and not (address.is_multicast or address.is_reserved)
    return (address in GLOBAL_UNICAST and address.is_global) or bool(_inside(address))


def _inside(address: Address) -> list[IPv4Address]:
    """Return the IPv4 address that an IPv6 address embeds, if any (mapped, 6to4, NAT64); it is checked too."""
    if isinstance(address, IPv4Address):
        return []
    if address in NAT64:
        return [IPv4Address(int(address) & 0xFFFFFFFF)]
    embedded = address.ipv4_mapped or address.sixtofour
    return [embedded] if embedded else []


def _is_ipv6(host: str) -> bool:
    try:
        return "%" not in host and isinstance(ip_address(host), IPv6Address)
    except ValueError:
        return False


def _canonical(host: str) -> str:
    return host.lower().rstrip(".")
