"""An identity provider of OpenID Connect: what it announces, the code that it redeems, the token that it signs.

All of it is judged as hostile. A provider that is down or slow holds no thread: calls are asynchronous, few at a time,
with limits on time and size.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from typing import Any, Generic, TypeGuard, TypeVar
from urllib.parse import urlsplit

import httpx2
import structlog
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client
from authlib.oidc.core import CodeIDToken
from joserfc import jwk, jwt
from joserfc.errors import ExpiredTokenError, InvalidKeyIdError, JoseError
from joserfc.jws import JWSRegistry

from orchestrator.api.login.attempt import Attempt
from shared.errors import NotConfigured, Unauthorized, Unavailable
from shared.settings import Settings, is_loopback

log = structlog.get_logger(__name__)

# With public keys only. A provider cannot choose `none`, or HMAC with a public key as its secret.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519")
KEY_TYPES = ("RSA", "EC", "OKP")
SHORTEST_RSA = 342
"""Characters of a modulus of 2,048 bits: signatures of shorter keys can be forged, and RFC 7518 forbids them."""
CALLS_AT_ONCE = 8
CALL_SECONDS = 10.0
LARGEST_ANSWER = 1 << 20
MOST_KEYS = 100
KNOWN_SECONDS = 3600.0
"""How long what a provider announces is used."""
PAUSE_SECONDS = 5.0
"""Between two attempts to read what it announces, if it failed, or if a token names an unknown key."""
LEEWAY = 60
"""Seconds by which the clocks of the provider and PostgreSQL may differ."""
WELL_KNOWN = "/.well-known/openid-configuration"
CALLBACK = "/login/oidc/callback"
Known = TypeVar("Known")


class Provider:
    """The configured provider. For one event loop.

    Attributes:
        name: its host, for people.

    Raises:
        NotConfigured: a setting is missing.
    """

    def __init__(self, settings: Settings) -> None:
        if not settings.oidc_issuer or not settings.oidc_client_id:
            raise NotConfigured("MINION_OIDC_ISSUER and MINION_OIDC_CLIENT_ID must be set together.")
        if settings.public_url is None:
            raise NotConfigured(
                "MINION_OIDC_ISSUER is set, and MINION_PUBLIC_URL is not: the provider must send browsers back to it. "
                "Set it, like https://minions.example.com."
            )
        if "openid" not in settings.oidc_scopes.split():
            raise NotConfigured("MINION_OIDC_SCOPES must contain openid, or the provider sends no identity.")
        self.name = urlsplit(settings.oidc_issuer).netloc
        self._issuer = settings.oidc_issuer
        self._client_id = settings.oidc_client_id
        secret = settings.oidc_client_secret
        self._client_secret = secret.get_secret_value() if secret else None
        self._scopes = settings.oidc_scopes
        self._redirect = f"{settings.public_url}{settings.base_path}{CALLBACK}"
        self._calls = asyncio.Semaphore(CALLS_AT_ONCE)
        self._metadata = _Remembered[dict[str, Any]]()
        self._keys = _Remembered[list[Any]]()

    async def authorization_url(self, attempt: Attempt) -> str:
        """Return the address at the provider where the user logs in.

        Raises:
            Unavailable: the provider does not answer, or not as it must.
        """
        metadata = await self._announced()
        async with self._client(metadata) as client:
            url, _ = client.create_authorization_url(
                metadata["authorization_endpoint"],
                state=attempt.state,
                nonce=attempt.nonce,
                code_verifier=attempt.verifier,
            )
        return str(url)

    async def check_sender(self, issuer: str | None) -> None:
        """Check that the answer names this provider, or no provider if this one announces no names (RFC 9207).

        Raises:
            Unauthorized: it does not.
            Unavailable: what the provider announces cannot be read.
        """
        is_named = (await self._announced()).get("authorization_response_iss_parameter_supported") is True
        if issuer != self._issuer and (is_named or issuer is not None):
            raise Unauthorized(
                "The answer comes from another identity provider than the configured one, or does not name it. Log in "
                "again."
            )

    async def redeem(self, code: str, attempt: Attempt) -> Mapping[str, Any]:
        """Return the tokens for a code.

        Raises:
            Unauthorized: the provider refuses the code.
            Unavailable: it does not answer, or not as it must.
        """
        metadata = await self._announced()
        async with self._calling(), self._client(metadata) as client:
            try:
                tokens = await client.fetch_token(
                    metadata["token_endpoint"],
                    grant_type="authorization_code",
                    code=code,
                    code_verifier=attempt.verifier,
                )
            except OAuthError as error:
                raise Unauthorized(
                    f"The identity provider refused the code of this login: {visible(error.error)}. Log in again."
                ) from None
            except (ValueError, TypeError, RecursionError):
                raise self._unavailable("its answer has no tokens") from None
        return dict(tokens)

    async def claims(self, tokens: Mapping[str, Any], attempt: Attempt, now: float) -> dict[str, Any]:
        """Return the claims of the identity token, all checked.

        Args:
            now: seconds since 1970, by PostgreSQL's clock.

        Raises:
            Unauthorized: the token is not one for this login.
            Unavailable: the provider's keys cannot be read.
        """
        token = tokens.get("id_token")
        if not isinstance(token, str):
            raise Unauthorized("The identity provider sent no identity token. It must support OpenID Connect.")
        try:
            decoded = await self._decode(token)
        except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise _invalid(error) from None
        return self._check(decoded, tokens.get("access_token"), attempt, int(now))

    async def _decode(self, token: str) -> jwt.Token:
        """Return a token whose signature fits one of the provider's keys, which may be new."""
        registry = JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
        try:
            return jwt.decode(token, _usable(await self._signing_keys()), registry=registry)
        except InvalidKeyIdError:
            return jwt.decode(token, _usable(await self._signing_keys(renew=True)), registry=registry)

    def _check(self, token: jwt.Token, access_token: Any, attempt: Attempt, now: int) -> dict[str, Any]:
        claims = CodeIDToken(
            token.claims,
            token.header,
            {"iss": {"essential": True, "value": self._issuer}, "aud": {"essential": True, "value": self._client_id}},
            {
                "nonce": attempt.nonce,
                "client_id": self._client_id,
                "access_token": access_token if isinstance(access_token, str) else None,
            },
        )
        try:
            claims.validate(now=now, leeway=LEEWAY)
        except ExpiredTokenError:
            raise Unauthorized(_out_of_time("was valid until", claims["exp"], now)) from None
        except (JoseError, ValueError, TypeError, AttributeError) as error:
            for name in ("nbf", "iat"):
                if getattr(error, "claim", None) == name and _is_later(moment := claims.get(name), now):
                    raise Unauthorized(_out_of_time("is not valid before", moment, now)) from None
            raise _invalid(error) from None
        return dict(claims)

    async def _announced(self) -> dict[str, Any]:
        return await self._metadata.get(self._read_metadata)

    async def _signing_keys(self, *, renew: bool = False) -> list[Any]:
        return await self._keys.get(self._read_keys, renew=renew)

    async def _read_metadata(self) -> dict[str, Any]:
        metadata = await self._get(self._issuer.rstrip("/") + WELL_KNOWN)
        if metadata.get("issuer") != self._issuer:
            raise Unavailable(
                f"The identity provider at {self.name} announces another issuer than MINION_OIDC_ISSUER, which must be "
                "the same to the letter."
            )
        for endpoint in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            self._check_endpoint(endpoint, metadata.get(endpoint))
        return metadata

    async def _read_keys(self) -> list[Any]:
        keys = (await self._get((await self._announced())["jwks_uri"])).get("keys")
        if not isinstance(keys, list):
            raise Unavailable(f"The identity provider at {self.name} announces no keys.")
        return keys[:MOST_KEYS]

    async def _get(self, url: str) -> dict[str, Any]:
        async with self._calling(), self._client({}) as client:
            headers = {"Accept": "application/json"}
            response = await client.request("GET", url, headers=headers, withhold_token=True)
            response.raise_for_status()
        try:
            answer = response.json()
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise self._unavailable("its answer is not a JSON object")
        return answer

    def _check_endpoint(self, name: str, url: Any) -> None:
        """Refuse an address without HTTPS, but for a provider that is itself on loopback: it is for development."""
        schemes = ("https", "http") if is_loopback(urlsplit(self._issuer).hostname) else ("https",)
        if not isinstance(url, str) or not _is_address(url, schemes):
            raise Unavailable(
                f"The identity provider at {self.name} announces no usable {name}: it must be an address with HTTPS."
            )

    def _client(self, metadata: Mapping[str, Any]) -> AsyncOAuth2Client:
        return AsyncOAuth2Client(
            self._client_id,
            self._client_secret,
            token_endpoint_auth_method=self._auth_method(metadata),
            scope=self._scopes,
            redirect_uri=self._redirect,
            code_challenge_method="S256",
            transport=_BoundedTransport(),
            timeout=CALL_SECONDS,
            trust_env=False,
        )

    def _auth_method(self, metadata: Mapping[str, Any]) -> str:
        """Return how the client proves itself: by the header that is standard, if the provider takes it."""
        if self._client_secret is None:
            return "none"
        supported = metadata.get("token_endpoint_auth_methods_supported")
        known = supported if isinstance(supported, list) else ["client_secret_basic"]
        only_in_body = "client_secret_post" in known and "client_secret_basic" not in known
        return "client_secret_post" if only_in_body else "client_secret_basic"

    @asynccontextmanager
    async def _calling(self) -> AsyncIterator[None]:
        """Bound a call in time, and turn its failures into one error."""
        try:
            async with asyncio.timeout(CALL_SECONDS), self._calls:
                yield
        except TimeoutError:
            raise self._unavailable(f"it did not answer within {CALL_SECONDS:g} s") from None
        except httpx2.HTTPStatusError as error:
            raise self._unavailable(f"it answered with status {error.response.status_code}") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self._unavailable(visible(str(error) or type(error).__name__)) from None

    def _unavailable(self, reason: str) -> Unavailable:
        log.warning("identity_provider_unavailable", provider=self.name, reason=reason)
        return Unavailable(
            f"The identity provider at {self.name} cannot be used at the moment: {reason}. Try again later, or log in "
            "with an API key. Open logins continue."
        )


class _Remembered(Generic[Known]):
    """Something that the provider announces, read by one request at a time, and at most every few seconds."""

    def __init__(self) -> None:
        self._value: Known | None = None
        self._until = 0.0
        self._next_attempt = 0.0
        self._failure: Unavailable | None = None
        self._reading = asyncio.Lock()

    async def get(self, read: Callable[[], Awaitable[Known]], *, renew: bool = False) -> Known:
        """Return the value; an old one is better than none.

        Raises:
            Unavailable: it cannot be read.
        """
        async with self._reading:
            now = time.monotonic()
            if now >= self._next_attempt and (renew or now >= self._until):
                await self._read(read)
            if self._value is not None:
                return self._value
            raise self._failure or Unavailable("The identity provider has not answered yet. Try again.")

    async def _read(self, read: Callable[[], Awaitable[Known]]) -> None:
        try:
            self._value = await read()
            self._until = time.monotonic() + KNOWN_SECONDS
        except Unavailable as error:
            self._failure = error
        finally:
            self._next_attempt = time.monotonic() + PAUSE_SECONDS


class _BoundedTransport(httpx2.AsyncBaseTransport):
    """A transport whose answers have a limited size, and are not compressed, or a small one could become huge."""

    def __init__(self) -> None:
        self._plain = httpx2.AsyncHTTPTransport(verify=_tls())

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request."""
        request.headers["Accept-Encoding"] = "identity"
        response = await self._plain.handle_async_request(request)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            await response.aclose()
            raise httpx2.RemoteProtocolError("its answer is compressed, although that was not asked for")
        response.stream = _BoundedStream(response.stream)
        return response

    async def aclose(self) -> None:
        """Close the connections."""
        await self._plain.aclose()


class _BoundedStream(httpx2.AsyncByteStream):
    """A body of limited size."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > LARGEST_ANSWER:
                raise httpx2.ReadError(f"its answer has more than {LARGEST_ANSWER:,} bytes")
            yield chunk

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()


@cache
def _tls() -> ssl.SSLContext:
    return httpx2.create_ssl_context()


def _usable(keys: list[Any]) -> jwk.KeySet:
    """Return the public keys in a set; those that are short or cannot be read are left out."""
    usable = []
    for key in keys:
        if isinstance(key, dict) and key.get("kty") in KEY_TYPES and not _is_short(key):
            with suppress(JoseError, ValueError, TypeError, KeyError):
                usable.append(jwk.import_key(key))
    return jwk.KeySet(usable)


def _is_short(key: dict[str, Any]) -> bool:
    return key["kty"] == "RSA" and len(str(key.get("n"))) < SHORTEST_RSA


def _invalid(error: Exception) -> Unauthorized:
    return Unauthorized(
        f"The identity provider's token is not valid for this login: {visible(str(error))}. Log in again; if that does "
        "not help, the provider or its settings here are wrong."
    )


def _out_of_time(relation: str, moment: float, now: int) -> str:
    return (
        f"The identity provider's token {relation} {_utc(moment)}, and here it is {_utc(now)}. The clock of the "
        "provider or that of the database is wrong: set it right, and log in again."
    )


def _utc(moment: float) -> str:
    try:
        return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return "a time out of range"


def _is_later(moment: Any, now: int) -> TypeGuard[float]:
    return isinstance(moment, int | float) and moment > now


def _is_address(url: str, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and not set(url) & set(' \\#"<>')
    return usable and plain and parts.scheme in schemes and "@" not in parts.netloc


def visible(text: Any) -> str:
    """Return a provider's text for a message: short, and without characters that cannot be seen."""
    shown = "".join(character if character.isprintable() else " " for character in str(text)[:200])
    return shown.strip().rstrip(".")
