"""The text of an API key: `mk_`, 43 characters of randomness, and 6 of a checksum.

The prefix and the checksum let secret scanners recognise a leaked key, and let the API refuse a mistyped one without
a look into the database.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib

from minions.keys import MARK, SHOWN

__all__ = ["MARK", "SHOWN", "digest", "generate", "is_well_formed"]

_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_RANDOM, _CHECK = 43, 6
_FORM = re.compile(f"{MARK}[0-9A-Za-z]{{{_RANDOM + _CHECK}}}")


def generate() -> str:
    """Return a new key with 256 random bits."""
    body = _base62(secrets.randbits(256), _RANDOM)
    return f"{MARK}{body}{_checksum(body)}"


def is_well_formed(key: str) -> bool:
    """Return whether a text has the form of a key and its checksum."""
    return bool(_FORM.fullmatch(key)) and _checksum(key[len(MARK) : -_CHECK]) == key[-_CHECK:]


def digest(key: str) -> bytes:
    """Return the SHA-256 of a key, which is stored in its place.

    Slow hashes such as bcrypt protect passwords, which can be guessed. A key has 256 random bits, which cannot be, so a
    fast hash without salt is right: it can be computed for every request, and an index finds it. The time of that
    search reveals nothing to a caller, because no caller can choose the first bytes of a digest.
    """
    return hashlib.sha256(key.encode()).digest()


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECK)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(_DIGITS))
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
