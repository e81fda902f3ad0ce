"""The addresses from which keys are used, for the threat rule about keys that are used from many."""

from __future__ import annotations

import threading
import time
from collections import Counter

from sqlalchemy import Engine, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, TEXT

from shared.access.actors import Key

SECONDS = 600.0
"""How often an address of a key is written again."""
MOST = 10_000
MOST_OF_A_KEY = 100
SEEN = text(
    "INSERT INTO key_addresses (key, address) SELECT k, a FROM unnest(:keys, :addresses) AS s (k, a) "
    "ON CONFLICT (key, address) DO UPDATE SET last_seen = now()"
).bindparams(bindparam("keys", type_=ARRAY(TEXT)), bindparam("addresses", type_=ARRAY(TEXT)))


class KeyAddresses:
    """Notes addresses in memory, and writes the new ones. May be called from any thread.

    Args:
        database: an engine in autocommit mode.
    """

    def __init__(self, database: Engine) -> None:
        self._database = database
        self._seen: dict[tuple[str, str], float] = {}
        self._new: set[tuple[str, str]] = set()
        self._of_key: Counter[str] = Counter()
        self._lock = threading.Lock()

    def note(self, key: Key, address: str | None) -> None:
        """Note that a key was used from an address."""
        pair = (key.record, address or "")
        if pair in self._seen or self._of_key[key.record] >= MOST_OF_A_KEY or len(self._seen) >= MOST:
            return
        with self._lock:
            self._seen[pair] = time.monotonic()
            self._of_key[key.record] += 1
            self._new.add(pair)

    def flush(self, *, everything: bool = False) -> None:
        """Write the new addresses; see `Counted`."""
        with self._lock:
            new, self._new = sorted(self._new), set()
            self._forget_old()
        if not new:
            return
        try:
            with self._database.connect() as connection:
                connection.execute(SEEN, {"keys": [pair[0] for pair in new], "addresses": [pair[1] for pair in new]})
        except BaseException:
            with self._lock:
                self._new |= set(new)
            raise

    def _forget_old(self) -> None:
        old = time.monotonic() - SECONDS
        for pair in [pair for pair, since in self._seen.items() if since < old]:
            del self._seen[pair]
            self._of_key[pair[0]] -= 1
        self._of_key = +self._of_key
