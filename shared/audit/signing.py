"""Keyed hashes of the audit log: a copy of the database, or the right to write to it, is not enough to forge a row.

The key is derived from `MINION_SECRET_KEY`, which is never in the database. As for secrets, the first of several keys
signs, and all of them verify.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from sqlalchemy import RowMapping

from shared.errors import NotConfigured
from shared.settings import Settings

Row = Mapping[str, Any] | RowMapping
PURPOSE = b"minions audit log 1"
SIGNED = ("nonce", "act", "actor", "key_prefix", "claimed", "address", "request_id", "namespace", "target")
"""Fields of a row that its signature covers, beside `before` and `after`."""


@dataclass(frozen=True, slots=True)
class Link:
    """A place in the chain: a row's position, and the hash that covers it and all rows before it."""

    position: int
    hash: bytes

    def __str__(self) -> str:
        """The place as logs show it: `POSITION:HASH`."""
        return f"{self.position}:{self.hash.hex()}"


BEGINNING = Link(0, b"")


class Signer:
    """Signs rows and places.

    Args:
        keys: the first one signs, all of them verify.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = keys

    @classmethod
    def of(cls, settings: Settings) -> Signer:
        """Return the signer of this installation.

        Raises:
            NotConfigured: it has no secret key.
        """
        keys = [key.strip().encode() for key in settings.require_secret_key().split(",") if key.strip()]
        if not keys:
            raise NotConfigured("MINION_SECRET_KEY contains no key. `minion secrets key` makes one.")
        return cls([hmac.digest(key, PURPOSE, hashlib.sha256) for key in keys])

    @classmethod
    def find(cls, settings: Settings) -> Signer | None:
        """Return the signer of this installation; None if it has no secret key."""
        try:
            return cls.of(settings)
        except NotConfigured:
            return None

    def sign_row(self, row: Row) -> bytes:
        """Return the signature of a row, `before` and `after` of which are texts."""
        return self._sign(_row(row))

    def is_row(self, row: Row) -> bool:
        """Return whether the signature of a row is that of a process with the key."""
        if row["signature"] is None or row["at"] is None:
            return False
        return self._verify(_row(row), bytes(row["signature"]))

    def chain(self, previous: Link, row: Row) -> Link:
        """Return the place of a row after the previous one."""
        position = previous.position + 1
        return Link(position, self._sign(_place(position, previous.hash, row)))

    def is_link(self, previous: Link, row: Row) -> bool:
        """Return whether a row has the hash of its place after the previous one."""
        return self._verify(_place(row["position"], previous.hash, row), bytes(row["hash"] or b""))

    def sign_end(self, name: str, link: Link) -> bytes:
        """Return the signature of an end of the chain."""
        return self._sign(_end(name, link))

    def is_end(self, name: str, link: Link, signature: bytes) -> bool:
        """Return whether the signature of an end is that of a process with the key."""
        return self._verify(_end(name, link), signature)

    def digest(self, value: bytes) -> str:
        """Return a short keyed digest of a value."""
        return self._sign(b"value" + value).hex()[:12]

    def _sign(self, message: bytes) -> bytes:
        return hmac.digest(self._keys[0], message, hashlib.sha256)

    def _verify(self, message: bytes, signature: bytes) -> bool:
        return any(hmac.compare_digest(hmac.digest(key, message, hashlib.sha256), signature) for key in self._keys)


def _row(row: Row) -> bytes:
    named = [None if row[name] is None else str(row[name]) for name in SIGNED]
    return json.dumps(["row", *named, row["before"], row["after"]]).encode()


def _place(position: int, previous: bytes, row: Row) -> bytes:
    at = row["at"] and row["at"].astimezone(UTC).isoformat()
    signature = None if row["signature"] is None else bytes(row["signature"]).hex()
    return json.dumps(["place", position, previous.hex(), row["id"], at, signature]).encode() + _row(row)


def _end(name: str, link: Link) -> bytes:
    return json.dumps(["end", name, link.position, link.hash.hex()]).encode()
