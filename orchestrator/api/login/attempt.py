"""A login at an identity provider that has begun: one secret in a cookie of the browser, and nothing in this process.

What the provider must return or can check is derived from it: the state, which binds the answer to this browser, the
nonce, which binds the token to this attempt, and the verifier of PKCE, without which a stolen code is worthless.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field

from orchestrator.api.login.return_path import checked
from shared.access import sessions

SECONDS = 600
FORM = re.compile(r"([A-Za-z0-9_-]{43})\.([A-Za-z0-9_=-]{0,700})")


def cookie_name(state: str) -> str:
    """Return the name of the cookie of an attempt: each has its own, because several tabs may log in at once."""
    return f"minion_oidc_{state[:8]}"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A login that has begun.

    Attributes:
        return_to: the page of ours that it leads to.
    """

    secret: str = field(repr=False)
    return_to: str

    @classmethod
    def begin(cls, return_to: str) -> Attempt:
        """Return a new one."""
        return cls(sessions.new_token(), return_to)

    @classmethod
    def read(cls, cookie: str) -> Attempt | None:
        """Return the one in a cookie; None if it is not one of ours."""
        match = FORM.fullmatch(cookie)
        if match is None:
            return None
        try:
            return cls(match[1], checked(urlsafe_b64decode(match[2]).decode()))
        except ValueError:
            return None

    @property
    def cookie(self) -> str:
        """The text of the cookie."""
        return f"{self.secret}.{urlsafe_b64encode(self.return_to.encode()).decode()}"

    @property
    def state(self) -> str:
        """The text that the provider returns with its answer."""
        return self._derive("state")

    @property
    def cookie_name(self) -> str:
        """The name of the cookie."""
        return cookie_name(self.state)

    @property
    def nonce(self) -> str:
        """The text that the provider puts into the token."""
        return self._derive("nonce")

    @property
    def verifier(self) -> str:
        """The text whose hash the provider got at the beginning."""
        return self._derive("verifier")

    def _derive(self, purpose: str) -> str:
        derived = hmac.digest(self.secret.encode(), f"minion oidc {purpose}".encode(), "sha256")
        return urlsafe_b64encode(derived).decode().rstrip("=")
