"""Hints over Redis pub/sub: that a task has finished, that it has new events, and the text that a model streams.

A hint may be lost; whoever waits also looks once a second. So a hint only makes waiting shorter, and a broker
that is away costs at most that second. Streamed text that is lost stands in the step when it is finished.
"""

from __future__ import annotations

import time
from functools import lru_cache
from uuid import UUID

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.database import wait_for
from shared.settings import Settings, get_settings
from shared.streaming import Streamed

log = structlog.get_logger(__name__)

FINISHED = "minion.finished"
EVENTS = "minion.events:"  # and the task's id: a channel for each task, so that nobody hears what he does not follow
SILENCE_SECONDS = 5.0
"""After a failure, until the next event is tried: a model's stream must not stop for a broker's time-outs each time."""


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


class _Silence:
    """Until when no events are tried, by the monotonic clock."""

    until = 0.0


_silent = _Silence()


@lru_cache(maxsize=1)
def _publisher() -> redis.Redis:
    return make_redis()


def forget_publisher() -> None:
    """In a forked child: the parent's connection is not ours."""
    _publisher.cache_clear()
    _silent.until = 0.0


def publish_finished(task_id: UUID) -> None:
    """Tells whoever waits for the task; never raises."""
    try:
        _publisher().publish(FINISHED, str(task_id))
    except (redis.RedisError, OSError) as error:
        log.debug("hint_lost", task_id=str(task_id), reason=str(error))


def publish_streamed(task_id: UUID, said: Streamed, key: bytes) -> None:
    """Shows something to those who follow the task now, and to nobody later; never raises.

    Args:
        key: the secret of the execution; see `shared.streaming`.
    """
    _tell_followers(task_id, said.sealed(task_id, key))


def publish_progress(task_id: UUID) -> None:
    """Tells those who follow the task that it has new stored events; never raises."""
    _tell_followers(task_id, "")


def _tell_followers(task_id: UUID, message: str) -> None:
    if time.monotonic() < _silent.until:
        return
    try:
        _publisher().publish(f"{EVENTS}{task_id}", message)
    except (redis.RedisError, OSError) as error:
        _silent.until = time.monotonic() + SILENCE_SECONDS
        log.debug("hint_lost", task_id=str(task_id), reason=str(error))
