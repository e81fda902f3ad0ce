"""Cookies: names and flags follow from the public address, never from a request.

With HTTPS, the prefix `__Host-` keeps other hosts of the same domain from setting them; below a base path it is
`__Secure-`, because a cookie with `__Host-` would be sent to everything on the host. Without HTTPS, cookies are neither
`Secure` nor prefixed, and are the same for all ports.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from fastapi import Request, Response

from shared.access import sessions
from shared.settings import Settings

SESSION = "minion_session"
FORM = "minion_form"


@dataclass(frozen=True, slots=True)
class Cookies:
    """The cookies of an installation.

    Attributes:
        origin: the address that browsers use; None if it is not configured, and then there are no cookies.
        path: the path below which browsers send them.
    """

    origin: str | None
    path: str = "/"

    @classmethod
    def of(cls, settings: Settings) -> Cookies:
        """Return the cookies for these settings."""
        return cls(settings.login_url(), settings.base_path or "/")

    @property
    def secure(self) -> bool:
        """Whether browsers send them over HTTPS only."""
        return self.origin is not None and urlsplit(self.origin).scheme == "https"

    def name(self, name: str) -> str:
        """Return the name of a cookie in browsers."""
        if not self.secure:
            return name
        return f"__Host-{name}" if self.path == "/" else f"__Secure-{name}"

    def read(self, request: Request, name: str) -> str | None:
        """Return the text of a cookie, as the browser sent it.

        The name must be the same to the byte. Frameworks strip more than the browsers do which protect `__Host-`, and
        would also accept `\\xa0__Host-…` of another host of the domain.
        """
        if self.origin is None:
            return None
        parts = [part.strip(" \t") for line in request.headers.getlist("cookie") for part in line.split(";")]
        sent = dict(part.split("=", 1) for part in parts if "=" in part)
        value = sent.get(self.name(name))
        return value if value is None else value.strip('"')

    def read_token(self, request: Request, name: str) -> str | None:
        """Return the random text of a cookie; None if it does not have the form of one."""
        value = self.read(request, name)
        return value if value is not None and sessions.is_well_formed(value) else None

    def set(
        self,
        response: Response,
        name: str,
        value: str,
        seconds: float,
        same_site: Literal["strict", "lax"] = "strict",
    ) -> None:
        """Set a cookie that scripts cannot read."""
        response.set_cookie(
            self.name(name),
            value,
            max_age=int(seconds),
            path=self.path,
            secure=self.secure,
            httponly=True,
            samesite=same_site,
        )

    def clear(self, response: Response, name: str, same_site: Literal["strict", "lax"] = "strict") -> None:
        """Remove a cookie."""
        self.set(response, name, "", 0, same_site)
