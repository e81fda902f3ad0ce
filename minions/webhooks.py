"""Webhooks, for who receives them: is a request from Minions, and what does it say?

    from minions.webhooks import verify

    message = verify(request.body, request.headers, secret)
    if message["type"] == "task.succeeded":
        ...

Messages are signed as the Standard Webhooks specification says (https://www.standardwebhooks.com), so that its
libraries can read them too. This module needs nothing but Python.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any

from minions.errors import InvalidSignature, NotConfigured

PREFIX = "whsec_"
VERSION = "v1"
ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"


def verify(body: bytes, headers: Mapping[str, str], secret: str, tolerance: float = 300) -> dict[str, Any]:
    """The message in a request, once it is certain who sent it.

    A message may come more than once: drop those whose `webhook-id` you have seen.

    Args:
        body: the request's body as it came, byte for byte.
        headers: the request's headers; case does not matter.
        secret: the webhook's, `whsec_…`.
        tolerance: seconds that the sender's clock may differ from ours; an older message may be somebody's recording.

    Raises:
        InvalidSignature: it is not from who has the secret, or not from now. Answer 401 and do nothing.
        NotConfigured: the secret is none.
    """
    given = {name.lower(): value for name, value in headers.items()}
    if missing := [name for name in (ID, TIMESTAMP, SIGNATURE) if not given.get(name)]:
        raise InvalidSignature(f"The request has no header {' and no header '.join(missing)}: it is not a webhook.")
    timestamp = _checked_time(given[TIMESTAMP], tolerance)
    expected = sign(secret, given[ID], timestamp, body)
    # Several signatures, separated by spaces, while a secret is being replaced.
    if not any(_same(one, expected) for one in given[SIGNATURE].split(" ")):
        raise InvalidSignature(
            "The signature does not match. Check that the secret is this webhook's, and that the body is the raw "
            "bytes that came, before parsing."
        )
    return _parsed(body)


def sign(secret: str, id: str, timestamp: int, body: bytes) -> str:
    """One signature, as it stands in the header `webhook-signature`.

    Args:
        id: the message's, which stays the same when it is sent again.
        timestamp: when it is sent, in seconds since 1970.

    Raises:
        NotConfigured: the secret is none.
    """
    # Some servers pass headers on with lone surrogates: such an id is not one of ours, and no reason to fail.
    signed = b".".join((id.encode("utf-8", "surrogatepass"), str(timestamp).encode(), body))
    digest = hmac.new(_key(secret), signed, hashlib.sha256).digest()
    return f"{VERSION},{base64.b64encode(digest).decode()}"


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        raise NotConfigured(
            "The secret is not valid: it must be `whsec_` followed by base64, as shown when the webhook was added."
        )
    return key


def _checked_time(given: str, tolerance: float) -> int:
    if not (given.isascii() and given.isdecimal()) or len(given) > 15:
        raise InvalidSignature(f"The header {TIMESTAMP} must be a time in seconds since 1970.")
    age = time.time() - int(given)
    if abs(age) > tolerance:
        when = "ago" if age > 0 else "in the future"
        raise InvalidSignature(f"The message was sent {abs(age):.0f} s {when}; at most {tolerance:g} s are tolerated.")
    return int(given)


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise InvalidSignature(
            "The signature matches, but the body is not a JSON object: it is not a message from Minions."
        )
    return message
