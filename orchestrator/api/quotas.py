"""Limits of one process: requests per minute of a key, and failed authentications per address.

Token buckets in memory: no request costs a statement. Each orchestrator has its own, so a key may use its whole quota
at each of several orchestrators behind one address.
"""

from __future__ import annotations

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.api.addresses import address_of, network_of
from orchestrator.api.buckets import MINUTE, Buckets
from shared.access.actors import Key
from shared.errors import TooManyRequests

FAILURES = 600
"""Failed authentications of an address per minute."""
POLICY = "minute"
SCOPE = "minions.quota_headers"
WITHIN = "minions.within"
"""In the scope of a request that the process itself makes to answer one that was counted."""


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
        if quota is None or WITHIN in request.scope:
            return
        level = self._keys.take(key.identity, quota)
        # The fields of draft-ietf-httpapi-ratelimit-headers-10.
        request.scope[SCOPE] += [
            (b"ratelimit-policy", f'"{POLICY}";q={quota};w={MINUTE:.0f}'.encode()),
            (b"ratelimit", f'"{POLICY}";r={level.left};t={level.full_in}'.encode()),
        ]
        if not level.allowed:
            raise TooManyRequests(
                f"{key.title} may send {quota} requests a minute to each orchestrator. Wait "
                f"{level.next_in} s; `minion keys create --requests-per-minute` makes a key with another quota.",
                retry_after=level.next_in,
            )

    def check_address(self, request: Request) -> None:
        """Refuse another attempt of an address from which too many have failed.

        Raises:
            TooManyRequests: too many have.
        """
        level = self._addresses.look(network_of(address_of(request)), FAILURES)
        if not level.allowed:
            raise TooManyRequests(
                f"More than {FAILURES} requests a minute from this address had no valid API key. Wait "
                f"{level.next_in} s.",
                retry_after=level.next_in,
            )

    def count_failure(self, request: Request) -> None:
        """Count a failed authentication of an address."""
        self._addresses.take(network_of(address_of(request)), FAILURES)


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
