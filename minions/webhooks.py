"""Verification of webhooks by their receivers.

    from minions.webhooks import verify

    message = verify(request.body, request.headers, secret)
    if message["type"] == "task.succeeded":
        ...

Messages are signed according to the Standard Webhooks specification (https://www.standardwebhooks.com), so its
libraries can verify them too. This module needs only Python.
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
    """Return the message in a request after verifying its sender.

    A message may arrive more than once: drop those whose `webhook-id` you have seen.

    Args:
        body: the request's body as received, byte for byte.
        headers: the request's headers; case does not matter.
        secret: the webhook's secret, `whsec_…`.
        tolerance: allowed difference in seconds between the sender's clock and ours; an older message may be a replay
            attack.

    Raises:
        InvalidSignature: it is not signed with the secret, or not recent. Answer 401 and do nothing.
        NotConfigured: the secret is invalid.
    """
    given = {name.lower(): value for name, value in headers.items()}
    if missing := [name for name in (ID, TIMESTAMP, SIGNATURE) if not given.get(name)]:
        raise InvalidSignature(f"The request has no header {' and no header '.join(missing)}: it is not a webhook.")
    timestamp = _checked_time(given[TIMESTAMP], tolerance)
    expected = sign(secret, given[ID], timestamp, body)
    # While a secret is being replaced there are several signatures, separated by spaces.
    if not any(_same(one, expected) for one in given[SIGNATURE].split(" ")):
        raise InvalidSignature(
            "The signature does not match. Check that the secret is this webhook's, and that the body is the raw "
            "bytes that came, before parsing."
        )
    return _parsed(body)


def sign(secret: str, id: str, timestamp: int, body: bytes) -> str:
    """Return one signature, in the form of the header `webhook-signature`.

    Args:
        id: the message's id, which stays the same when it is sent again.
        timestamp: time of sending, in seconds since 1970.

    Raises:
        NotConfigured: the secret is invalid.
    """
    # Some servers pass headers on with lone surrogates: such an id is not one of ours, but must not cause an error.
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
