"""Limits of one process: requests per minute of a key, and failed authentications per address.

Token buckets in memory: no request costs a statement. Several orchestrators each have their own, so a key may send as
many times its quota as there are orchestrators behind one address.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.access.actors import Key
from shared.errors import TooManyRequests

MINUTE = 60.0
MOST = 10_000
"""Buckets that are kept, the last used ones: a flood of addresses takes little memory."""
FAILURES = 600
"""Failed authentications of an address per minute."""
POLICY = "minute"
SCOPE = "minions.quota_headers"


@dataclass(frozen=True, slots=True)
class Level:
    """The state of a bucket after a request.

    Attributes:
        allowed: it had room for the request.
        left: the requests for which it has room now.
        next_in: seconds until it has room for another one.
        full_in: seconds until it is full again.
    """

    allowed: bool
    left: int
    next_in: int
    full_in: int


class Buckets:
    """Token buckets by name: each holds a minute's requests, and fills evenly. For one event loop."""

    def __init__(self) -> None:
        self._tokens: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str, per_minute: int, *, now: float | None = None) -> Level:
        """Take room for a request, if there is any."""
        return self._level(name, per_minute, 1, time.monotonic() if now is None else now)

    def look(self, name: str, per_minute: int, *, now: float | None = None) -> Level:
        """Return the level, and whether there is room for a request, without taking any."""
        return self._level(name, per_minute, 0, time.monotonic() if now is None else now)

    def _level(self, name: str, per_minute: int, wanted: int, now: float) -> Level:
        tokens, since = self._tokens.get(name, (float(per_minute), now))
        tokens = min(float(per_minute), tokens + (now - since) * per_minute / MINUTE)
        allowed = tokens >= 1
        if wanted:
            tokens -= allowed
            self._tokens[name] = tokens, now
            self._tokens.move_to_end(name)
            if len(self._tokens) > MOST:
                self._tokens.popitem(last=False)
        rate = per_minute / MINUTE
        return Level(
            allowed,
            int(tokens),
            max(1, math.ceil((1 - tokens) / rate)),
            math.ceil((per_minute - tokens) / rate),
        )


class Quotas:
    """The limits of this process."""

    def __init__(self) -> None:
        self._keys = Buckets()
        self._addresses = Buckets()

    def spend(self, key: Key, request: Request) -> None:
        """Count a request of a key that has a quota.

        Raises:
            TooManyRequests: it has none left.
        """
        quota = key.requests_per_minute
        if quota is None:
            return
        level = self._keys.take(key.identity, quota)
        # The fields of draft-ietf-httpapi-ratelimit-headers-10.
        request.scope[SCOPE] += [
            (b"ratelimit-policy", f'"{POLICY}";q={quota};w={MINUTE:.0f}'.encode()),
            (b"ratelimit", f'"{POLICY}";r={level.left};t={level.full_in}'.encode()),
        ]
        if not level.allowed:
            raise TooManyRequests(
                f"The key {key.name!r} may send {quota} requests a minute to each orchestrator. Wait "
                f"{level.next_in} s; `minion keys create --requests-per-minute` makes a key with another quota.",
                retry_after=level.next_in,
            )

    def check_address(self, request: Request) -> None:
        """Refuse another attempt of an address from which too many have failed.

        Raises:
            TooManyRequests: too many have.
        """
        level = self._addresses.look(_address(request), FAILURES)
        if not level.allowed:
            raise TooManyRequests(
                f"More than {FAILURES} requests a minute from this address had no valid API key. Wait "
                f"{level.next_in} s.",
                retry_after=level.next_in,
            )

    def count_failure(self, request: Request) -> None:
        """Count a failed authentication of an address."""
        self._addresses.take(_address(request), FAILURES)


class QuotaHeaders:
    """Middleware that adds what `Quotas` says about the key to every answer, refusals and streams too."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers: list[tuple[bytes, bytes]] = []
        scope[SCOPE] = headers

        async def with_headers(message: Message) -> None:
            if headers and message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *headers]}
            await send(message)

        await self.app(scope, receive, with_headers)


def _address(request: Request) -> str:
    """Return the caller's address; of IPv6 the network, in which a caller has as many addresses as it likes."""
    host = request.client.host if request.client else ""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        return str(IPv6Address(int(address) >> 64 << 64))
    return host
