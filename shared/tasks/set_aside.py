"""Foreign messages: taken out of their queue, counted, and kept for an operator to inspect.

The newest ones are in the Redis list `minion.set_aside`, truncated; the hash `minion.set_aside.count` has
their number per queue. They are never put back.
"""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import redis
import structlog

from shared.notifications import make_redis

log = structlog.get_logger(__name__)

SAMPLES = "minion.set_aside"
COUNTS = "minion.set_aside.count"
KEPT = 100
"""Number of samples kept."""
SHOWN = 500
"""Bytes kept of each."""
LOG_SECONDS = 1.0


class SetAside:
    """Sets messages aside, and logs that at most once a second: there may be thousands of them."""

    def __init__(self, broker: redis.Redis) -> None:
        self._broker = broker
        self._lock = threading.Lock()
        self._quiet_until = 0.0
        self._unlogged = 0

    def put(self, queue: str, raw: bytes, why: str, *, size: int | None = None) -> None:
        """Keep the beginning of a message and count it; never raises, because the message is gone either way.

        Args:
            size: bytes of the whole message, if `raw` is only its beginning.
        """
        size = len(raw) if size is None else size
        self._log(queue, why, size)
        sample = {
            "queue": queue,
            "why": why,
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "bytes": size,
            "begins": raw[:SHOWN].decode("utf-8", "backslashreplace"),
        }
        try:
            with self._broker.pipeline(transaction=False) as pipe:
                pipe.lpush(SAMPLES, json.dumps(sample))
                pipe.ltrim(SAMPLES, 0, KEPT - 1)
                pipe.hincrby(COUNTS, queue, 1)
                pipe.execute()
        except (redis.RedisError, OSError) as error:
            log.warning("not_kept", reason=str(error)[:300])

    def _log(self, queue: str, why: str, size: int) -> None:
        with self._lock:
            self._unlogged += 1
            now = time.monotonic()
            if now < self._quiet_until:
                return
            messages, self._unlogged, self._quiet_until = self._unlogged, 0, now + LOG_SECONDS
        log.warning("set_aside", queue=queue, why=why, bytes=size, messages=messages)


@lru_cache(maxsize=1)
def _default() -> SetAside:
    return SetAside(make_redis())


def set_aside(queue: str, raw: bytes, why: str, *, size: int | None = None) -> None:
    """Set a message aside as `SetAside.put` does, in the configured Redis."""
    _default().put(queue, raw, why, size=size)


def counts(broker: redis.Redis) -> dict[str, int]:
    """Return the number of messages set aside per queue since Redis was last emptied."""
    found: Any = broker.hgetall(COUNTS)
    return {queue.decode("utf-8", "replace"): int(count) for queue, count in found.items()}
