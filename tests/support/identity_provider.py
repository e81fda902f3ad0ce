"""A local provider of OpenID Connect that can be down, slow, and lie."""

from __future__ import annotations

import json
import secrets
import threading
import time
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from authlib.oauth2.rfc7636 import create_s256_code_challenge
from joserfc import jws, jwt
from joserfc.jwk import OctKey, RSAKey

from tests.support.http_server import answering

CLIENT = "minions"
SECRET = "a secret: of/the client"


@dataclass
class IdentityProvider:
    """The provider. Its attributes say what it does from now on.

    Attributes:
        claims: of its user.
        lies: claims of the next tokens in place of the right ones; None leaves one out.
        algorithm: of the next tokens: RS256, `none`, or HS256 with the public key as the secret.
        answers: for a path, a status and a body in place of the right answer.
        hanging: paths that do not answer before `released` is set.
        requests: the paths that were asked for.
    """

    port: int = 0
    key: RSAKey = field(default_factory=lambda: _first_key())
    claims: dict[str, Any] = field(
        default_factory=lambda: {
            "sub": "248289761001",
            "email": "alice@example.com",
            "email_verified": True,
            "groups": ["staff", "minions-operators"],
        }
    )
    lies: dict[str, Any] = field(default_factory=dict)
    algorithm: str = "RS256"
    answers: dict[str, tuple[int, bytes, dict[str, str]]] = field(default_factory=dict)
    hanging: set[str] = field(default_factory=set)
    released: threading.Event = field(default_factory=threading.Event)
    requests: list[str] = field(default_factory=list)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    token_requests: list[dict[str, str]] = field(default_factory=list)

    @property
    def issuer(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def metadata(self) -> dict[str, Any]:
        """What it announces."""
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/jwks",
            # A lie too: what it announces here must not matter.
            "id_token_signing_alg_values_supported": ["RS256", "HS256", "none"],
        }

    def rotate_key(self) -> None:
        """Sign with another key from now on."""
        self.key = RSAKey.generate_key(2048, auto_kid=True)

    def token(self, nonce: str) -> str:
        """Return an identity token."""
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": CLIENT, "iat": now, "exp": now + 300, "nonce": nonce, **self.claims}
        claims |= self.lies
        claims = {name: value for name, value in claims.items() if value is not None}
        if self.algorithm == "RS256":
            return jwt.encode({"alg": "RS256", "kid": self.key.kid}, claims, self.key)
        header = {"alg": self.algorithm, "kid": self.key.kid}
        if self.algorithm == "none":
            return ".".join(
                [*(urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in (header, claims)), ""]
            )
        secret = OctKey.import_key({"kty": "oct", "k": self.key.as_dict(private=False)["n"]})
        return jws.serialize_compact(header, json.dumps(claims), secret)

    def authorize(self, query: dict[str, str]) -> str:
        """Log the user in, and return where the browser goes."""
        assert query["response_type"] == "code"
        assert query["client_id"] == CLIENT
        assert query["code_challenge_method"] == "S256"
        assert "openid" in query["scope"].split()
        code = secrets.token_urlsafe()
        self.codes[code] = query
        return f"{query['redirect_uri']}?{urlencode({'code': code, 'state': query['state'], 'iss': self.issuer})}"

    def redeem(self, form: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        """Return the tokens for a code, once."""
        self.token_requests.append(form)
        user, _, password = b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
        if (unquote(user), unquote(password)) != (CLIENT, SECRET):
            return 401, {"error": "invalid_client"}
        asked = self.codes.pop(form.get("code", ""), None)
        if (
            asked is None
            or form["grant_type"] != "authorization_code"
            or form["redirect_uri"] != asked["redirect_uri"]
            or create_s256_code_challenge(form["code_verifier"]) != asked["code_challenge"]
        ):
            return 400, {"error": "invalid_grant"}
        return 200, {"access_token": "of-the-provider", "token_type": "Bearer", "id_token": self.token(asked["nonce"])}


@cache
def _first_key() -> RSAKey:
    """Return the key of every new provider: making one takes a while."""
    return RSAKey.generate_key(2048, auto_kid=True)


@contextmanager
def providing() -> Iterator[IdentityProvider]:
    """Run a provider."""
    provider = IdentityProvider()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self._is_overridden():
                return
            url = urlsplit(self.path)
            if url.path == "/.well-known/openid-configuration":
                self._answer(200, provider.metadata())
            elif url.path == "/jwks":
                self._answer(200, {"keys": [provider.key.as_dict(private=False)]})
            elif url.path == "/authorize":
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                self._send(302, b"", {"Location": provider.authorize(query)})
            else:
                self._answer(404, {})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            if not self._is_overridden():
                form = {name: values[0] for name, values in parse_qs(body).items()}
                self._answer(*provider.redeem(form, self.headers.get("Authorization", "")))

        def _is_overridden(self) -> bool:
            path = urlsplit(self.path).path
            provider.requests.append(path)
            if path in provider.hanging:
                provider.released.wait()
            if path in provider.answers:
                self._send(*provider.answers[path])
            return path in provider.answers

        def _answer(self, status: int, value: dict[str, Any]) -> None:
            self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # the caller gave up
                super().handle()

    try:
        with answering(Handler) as provider.port:
            yield provider
    finally:
        provider.released.set()
