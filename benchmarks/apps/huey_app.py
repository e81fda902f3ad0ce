"""huey's application."""

from __future__ import annotations

import os
from typing import Any

from huey import RedisHuey


def make_huey(address: str, name: str = "bench") -> tuple[RedisHuey, Any]:
    """Return a queue and its task."""
    huey = RedisHuey(name, url=address, notify_result=True)
    return huey, huey.task(name="noop")(_noop)


def _noop(value: Any) -> Any:
    return value


huey, noop = make_huey(os.environ.get("BENCH_REDIS", "redis://"))
