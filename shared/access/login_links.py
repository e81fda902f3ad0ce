"""Links that log a browser in once: `minion up` prints one for the person at its terminal.

A link is signed with the administrator's key, so the process that prints it needs no database. The cookie of the login
follows from the link, and the database accepts each cookie once: so a link works once, in all processes together.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
import time

from shared.errors import Unauthorized

SECONDS = 300
FORM = re.compile(r"([0-9]{10})-([A-Za-z0-9_-]{22})-([0-9a-f]{64})")


def new_code(key: bytes, now: float | None = None) -> str:
    """Return the secret part of a new link.

    Args:
        key: the administrator's key.
    """
    said = f"{int(now or time.time()) + SECONDS}-{secrets.token_urlsafe(16)}"
    return f"{said}-{_signature(key, said)}"


def cookie_of(key: bytes, code: str, now: float | None = None) -> str:
    """Return the text of the cookie that a link opens a login with.

    Raises:
        Unauthorized: it was not made with this key, or is too old.
    """
    found = FORM.fullmatch(code)
    if found is None or not hmac.compare_digest(_signature(key, f"{found[1]}-{found[2]}"), found[3]):
        raise Unauthorized("This is not a valid link to log in with. Copy all of it, or log in with an API key.")
    if int(found[1]) < (now or time.time()):
        raise Unauthorized(
            f"This link is more than {SECONDS // 60} minutes old. Log in with an API key; `minion up` prints a new "
            "link when it starts."
        )
    digest = hmac.digest(key, f"minion login cookie {code}".encode(), "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _signature(key: bytes, said: str) -> str:
    return hmac.digest(key, f"minion login link {said}".encode(), "sha256").hex()
