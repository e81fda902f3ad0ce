"""dramatiq's broker and actor."""

from __future__ import annotations

import os
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend


def make_actors(address: str) -> Any:
    """Set the broker, and return the actor."""
    broker = RedisBroker(url=address)
    broker.add_middleware(Results(backend=RedisBackend(url=address)))
    dramatiq.set_broker(broker)
    broker.declare_queue("unserved")
    return dramatiq.actor(_noop, actor_name="noop", store_results=True)


def _noop(value: Any) -> Any:
    return value


if "BENCH_REDIS" in os.environ:
    noop = make_actors(os.environ["BENCH_REDIS"])
