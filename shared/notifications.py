"""Notifications over Redis pub/sub: a task has ended, it has new events, a model streams text, or API keys changed.

A notification may be lost, so waiting clients also poll once a second: it only makes waiting shorter, and a broker
that is away costs at most that second. Streamed text that is lost is in the step when that is finished.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any
from uuid import UUID

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.database.connections import wait_for
from shared.settings import Settings, get_settings
from shared.streaming import Streamed

log = structlog.get_logger(__name__)

FINISHED = "minion.finished"
KEYS = "minion.keys"
EVENTS = "minion.events:"  # and the task's id: one channel per task, so that subscribers receive only its events
SILENCE_SECONDS = 5.0
"""Seconds after a failure until the next attempt: a model's stream must not wait for a time-out every time."""


_sharing: dict[str, int] = {}


def share_redis_connections() -> None:
    """Let the many tasks of this process share four connections a client; they wait for a free one."""
    _sharing["max_connections"] = 4


def make_redis(*, timeout: float | None = 2.0) -> redis.Redis:
    """Create a Redis client that gives up after `timeout` seconds (None waits indefinitely, for a subscriber)."""
    pool = (redis.BlockingConnectionPool if _sharing else redis.ConnectionPool).from_url(
        get_settings().require_redis_url(),
        socket_timeout=timeout,
        socket_connect_timeout=2.0,
        health_check_interval=30,
        # redis-py retries ten times by default: a broker that is away would delay every task by seconds.
        retry=Retry(NoBackoff(), 1),
        **_sharing,
    )
    return redis.Redis.from_pool(pool)


def wait_for_broker(settings: Settings) -> None:
    """Wait until the broker answers.

    Raises:
        Unavailable: it does not answer.
        NotConfigured: its address is missing.
    """

    def probe() -> None:
        with make_redis() as broker:
            broker.ping()

    wait_for(probe, what="The broker", attempts=settings.connect_attempts)


class _Silence:
    """Until when no events are published after a failure, by the monotonic clock."""

    until = 0.0


_silent = _Silence()


@lru_cache(maxsize=1)
def _publisher() -> redis.Redis:
    return make_redis()


def forget_publisher() -> None:
    """Forget the parent's connection in a forked child."""
    _publisher.cache_clear()
    _silent.until = 0.0


def publish_finished(*task_ids: UUID) -> None:
    """Notify waiting clients that the tasks have ended; never raises."""
    try:
        with _publisher().pipeline(transaction=False) as pipe:
            for task_id in task_ids:
                pipe.publish(FINISHED, str(task_id))
            pipe.execute()
    except (redis.RedisError, OSError) as error:
        log.debug("hint_lost", task_ids=[str(task_id) for task_id in task_ids], reason=str(error))


def publish_keys_changed() -> None:
    """Notify all orchestrators that API keys were changed, after the commit; never raises."""
    try:
        _publisher().publish(KEYS, "")
    except (redis.RedisError, OSError) as error:
        log.debug("hint_lost", channel=KEYS, reason=str(error))


def publish_streamed(task_id: UUID, said: Streamed, key: bytes) -> int | None:
    """Publish streamed text to current followers of the task only, without storing it; never raises.

    Args:
        key: the secret of the execution; see `shared.streaming`.

    Returns:
        the number of orchestrators that received it for followers; None if it is unknown.
    """
    return _notify_followers(task_id, said.seal(task_id, key))


def publish_progress(task_id: UUID) -> int | None:
    """Notify followers that the task has new stored events; never raises. Return as `publish_streamed` does."""
    return _notify_followers(task_id, "")


def _notify_followers(task_id: UUID, message: str) -> int | None:
    """Return the number of receivers, or None if the message was not sent."""
    if time.monotonic() < _silent.until:
        return None
    try:
        receivers: Any = _publisher().publish(f"{EVENTS}{task_id}", message)
    except (redis.RedisError, OSError) as error:
        _silent.until = time.monotonic() + SILENCE_SECONDS
        log.debug("hint_lost", task_id=str(task_id), reason=str(error))
        return None
    return int(receivers)
