"""Hints that a task has finished, over Redis pub/sub.

A hint may be lost; whoever waits also looks once a second. So a hint only makes waiting shorter, and a broker
that is away costs at most that second.
"""

from __future__ import annotations

from functools import lru_cache
from uuid import UUID

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.database import wait_for
from shared.settings import Settings, get_settings

log = structlog.get_logger(__name__)

FINISHED = "minion.finished"


def make_redis(*, timeout: float | None = 2.0) -> redis.Redis:
    """A Redis client that gives up after `timeout` seconds (None: waits, for a subscriber)."""
    return redis.Redis.from_url(
        get_settings().require_redis_url(),
        socket_timeout=timeout,
        socket_connect_timeout=2.0,
        health_check_interval=30,
        # Ten attempts are redis-py's default: a broker that is away would hold up every task for seconds.
        retry=Retry(NoBackoff(), 1),
    )


def wait_for_broker(settings: Settings) -> None:
    """Waits until the broker answers.

    Raises:
        Unavailable: it does not.
        NotConfigured: its address is missing.
    """

    def probe() -> None:
        with make_redis() as broker:
            broker.ping()

    wait_for(probe, what="The broker", attempts=settings.connect_attempts)


@lru_cache(maxsize=1)
def _publisher() -> redis.Redis:
    return make_redis()


def forget_publisher() -> None:
    """In a forked child: the parent's connection is not ours."""
    _publisher.cache_clear()


def publish_finished(task_id: UUID) -> None:
    """Tells whoever waits for the task; never raises."""
    try:
        _publisher().publish(FINISHED, str(task_id))
    except (redis.RedisError, OSError) as error:
        log.debug("hint_lost", task_id=str(task_id), reason=str(error))
