"""OAuth client credentials (RFC 6749, section 4.4) for requests to an MCP server.

The definition names the authorization server, or its token endpoint: a secret goes to no address that the MCP server
could choose. A token is kept in this process until it expires, and replaced once when the server refuses it. It is
neither logged nor stored, and removed from whatever a server repeats.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2

from shared.contracts.documents import McpOAuth
from shared.contracts.strict_json import JsonValue, digest, parse
from shared.errors import InvalidInput, MinionError
from shared.mcp.faults import McpFault
from shared.outbound import TEMPORARY, checked_url, guarded_client, read_body
from shared.secret_store import scrub
from shared.settings import Settings

SECONDS = 10.0
"""Limit of each request to an authorization server."""
MAX_BYTES = 64 << 10
MAX_EXCERPT = 300
EARLY_SECONDS = 30.0
"""A token is replaced this long before it expires."""
USUAL_SECONDS = 300.0
"""Lifetime of a token whose server does not say."""
LONGEST_SECONDS = 86_400.0
MOST_TOKENS = 1_000


@dataclass(frozen=True, slots=True)
class Token:
    """An access token, valid until `ends` by the monotonic clock."""

    text: str
    ends: float


class Tokens:
    """The tokens of this process, by what they were issued for."""

    def __init__(self) -> None:
        self._tokens: dict[str, Token] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def lock_of(self, key: str) -> threading.Lock:
        """Return the lock under which a token is fetched, so that threads fetch it once."""
        with self._lock:
            return self._locks.setdefault(key, threading.Lock())

    def get(self, key: str) -> Token | None:
        """Return a token that has not expired."""
        token = self._tokens.get(key)
        return token if token is not None and time.monotonic() < token.ends else None

    def put(self, key: str, token: Token) -> None:
        """Keep a token."""
        with self._lock:
            if len(self._tokens) >= MOST_TOKENS:
                self._tokens.clear()
                self._locks.clear()
            self._tokens[key] = token

    def drop(self, key: str, text: str) -> None:
        """Forget a token, unless another thread has replaced it."""
        with self._lock:
            known = self._tokens.get(key)
            if known is not None and known.text == text:
                del self._tokens[key]


TOKENS = Tokens()


class ClientCredentials:
    """The credentials of requests to one server: fixed headers, and a token.

    Args:
        resource: the server's address, for which the token is issued (RFC 8707).
        secret: the client's secret.
        headers: fixed ones, with the values of their secrets.
        secrets: these values.
    """

    def __init__(
        self,
        oauth: McpOAuth,
        resource: str,
        secret: str,
        settings: Settings,
        headers: Mapping[str, str],
        secrets: Collection[str] = (),
        tokens: Tokens = TOKENS,
    ) -> None:
        self.oauth = oauth
        self.resource = resource
        self.settings = settings
        self.tokens = tokens
        self._secret = secret
        self._headers = headers
        self._secrets = secrets
        self._token: str | None = None
        # A changed secret, or another definition, has other tokens.
        self._key = digest([oauth.model_dump(), resource, secret])

    def headers(self, ends: float) -> Mapping[str, str]:
        lock = self.tokens.lock_of(self._key)
        if not lock.acquire(timeout=max(ends - time.monotonic(), 0.0)):
            raise self._late()
        try:
            token = self.tokens.get(self._key)
            if token is None:
                token = self._fetch(ends)
                self.tokens.put(self._key, token)
        finally:
            lock.release()
        self._token = token.text
        return {**self._headers, "Authorization": f"Bearer {token.text}"}

    def secrets(self) -> Collection[str]:
        return [*self._secrets, self._secret, *([self._token] if self._token else [])]

    def renew(self, status: int, headers: Mapping[str, str]) -> bool:
        if status != 401 or self._token is None:
            return False
        self.tokens.drop(self._key, self._token)
        return True

    def _fetch(self, ends: float) -> Token:
        """Ask for a token, until the time `ends`.

        Raises:
            McpFault: the authorization server refuses, or cannot be reached.
        """
        fields = {"grant_type": "client_credentials", "resource": self.resource}
        if self.oauth.scope:
            fields["scope"] = self.oauth.scope
        headers = {"Accept": "application/json"}
        if self.oauth.method == "client_secret_post":
            fields.update(client_id=self.oauth.client_id, client_secret=self._secret)
        else:
            pair = f"{quote(self.oauth.client_id, safe='')}:{quote(self._secret, safe='')}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        url = self.oauth.token_url or self._token_endpoint(str(self.oauth.issuer), ends)
        status, answer = self._ask("POST", url, ends, headers, fields)
        if status != 200:
            raise self._fault(f"answers HTTP {status}: {_error_in(answer)}", temporary=status in TEMPORARY)
        return self._token_in(answer)

    def _token_in(self, answer: JsonValue) -> Token:
        text = answer.get("access_token") if isinstance(answer, dict) else None
        kind = answer.get("token_type") if isinstance(answer, dict) else None
        if not isinstance(text, str) or not text.isascii() or not text.isprintable() or " " in text or not text:
            raise self._fault("has sent no token that a header can carry")
        if not isinstance(kind, str) or kind.lower() != "bearer":
            raise self._fault(f"has sent a token of type {str(kind)[:50]!r}, and only `bearer` is supported")
        assert isinstance(answer, dict)
        given = answer.get("expires_in")
        is_number = isinstance(given, int | float) and not isinstance(given, bool)
        seconds = min(max(float(given), 0.0), LONGEST_SECONDS) if is_number else USUAL_SECONDS  # type: ignore[arg-type]
        return Token(text, time.monotonic() + max(seconds - EARLY_SECONDS, seconds / 2))

    def _token_endpoint(self, issuer: str, ends: float) -> str:
        """Return the token endpoint of an authorization server, from its metadata (RFC 8414)."""
        for url in metadata_addresses(issuer):
            status, found = self._ask("GET", url, ends, {"Accept": "application/json"})
            if status != 200 or not isinstance(found, dict):
                continue
            if found.get("issuer") != issuer:
                raise self._fault(f"has metadata at {url} that are those of another issuer")
            endpoint = found.get("token_endpoint")
            try:
                return str(checked_url(endpoint))  # type: ignore[arg-type]  # it refuses whatever is no text
            except InvalidInput as error:
                raise self._fault(f"has metadata without a valid token_endpoint: {error.message}") from None
        raise self._fault(f"has no metadata: check `issuer`, {issuer}, or set `token_url`")

    def _ask(
        self, method: str, url: str, ends: float, headers: Mapping[str, str], fields: Mapping[str, str] | None = None
    ) -> tuple[int, JsonValue]:
        """Return the status and the JSON of an answer; None for an answer that is none."""
        left = ends - time.monotonic()
        if left <= 0:
            raise self._late()
        try:
            with (
                guarded_client(self.settings, seconds=min(SECONDS, left)) as client,
                client.stream(method, url, headers=headers, data=fields) as response,
            ):
                return response.status_code, _json(self._scrubbed(read_body(response, MAX_BYTES) or b""))
        except httpx2.RequestError as error:
            raise self._fault(f"cannot be reached: {type(error).__name__}: {error}", temporary=True) from None
        except MinionError as error:
            raise self._fault(f"cannot be reached: {error.message}", temporary=error.retryable) from None

    def _scrubbed(self, body: bytes) -> str:
        # The token itself is needed; nothing but the token is taken from an answer with one.
        return scrub(body.decode("utf-8", "replace"), [self._secret])

    def _late(self) -> McpFault:
        return self._fault("did not answer in time (timeout)", temporary=True)

    def _fault(self, why: str, *, temporary: bool = False) -> McpFault:
        text = scrub(f"its authorization server {why}"[:500], [self._secret])
        return McpFault(text, taken=False, temporary=temporary)


def metadata_addresses(issuer: str) -> Iterator[str]:
    """Yield where the metadata of an authorization server may be, in the order of the MCP specification."""
    parts = urlsplit(issuer)
    origin, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    yield f"{origin}/.well-known/oauth-authorization-server{path}"
    yield f"{origin}/.well-known/openid-configuration{path}"
    if path:
        yield f"{origin}{path}/.well-known/openid-configuration"


def _json(text: str) -> JsonValue:
    with suppress(MinionError):
        return parse(text)
    return None


def _error_in(answer: Any) -> str:
    """Return the error of an OAuth response, for people."""
    parts = [answer.get(name) for name in ("error", "error_description")] if isinstance(answer, dict) else []
    return ": ".join(part for part in parts if isinstance(part, str))[:MAX_EXCERPT] or "no reason"
