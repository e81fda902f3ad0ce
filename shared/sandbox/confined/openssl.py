"""Keeps OpenSSL out of the zygote. `leave_out` must run before the first import of `asyncio` or `hashlib`."""

from __future__ import annotations

import importlib.util
import sys

_OWN_DIGESTS = ("_md5", "_sha1", "_blake2", "_sha3")


def leave_out() -> None:
    """Block OpenSSL: Python's own digests suffice, and libcrypto and libssl would add 5 MB to copy and to attack."""
    if all(importlib.util.find_spec(name) for name in _OWN_DIGESTS):
        sys.modules["_hashlib"] = sys.modules["ssl"] = sys.modules["_ssl"] = None  # type: ignore[assignment]
