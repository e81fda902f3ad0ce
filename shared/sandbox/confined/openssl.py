"""Keeps OpenSSL out of the zygote. It must be called before anything imports `asyncio` or `hashlib`, which load it."""

from __future__ import annotations

import importlib.util
import sys

_OWN_DIGESTS = ("_md5", "_sha1", "_blake2", "_sha3")


def leave_out() -> None:
    """Python's own digests do; five megabytes of libcrypto and libssl would be more to copy and to attack."""
    if all(importlib.util.find_spec(name) for name in _OWN_DIGESTS):
        sys.modules["_hashlib"] = sys.modules["ssl"] = sys.modules["_ssl"] = None  # type: ignore[assignment]
