"""Publishes the task that a finished or suspended one leads to: its woken parent, or its sub-task.

If a slot is free for that task, PostgreSQL queues it in the transaction of the end or the suspension, so that it needs
no round of the dispatcher. Only slots of the pool publish; elsewhere the dispatcher does.
"""

from __future__ import annotations

import time

import structlog
from celery import Celery

from shared.broker import publish
from shared.settings import get_settings
from shared.tasks.lifecycle import Dispatched

log = structlog.get_logger(__name__)

SILENCE_SECONDS = 5.0
"""Seconds after a failure in which the dispatcher publishes."""
TIMEOUT_SECONDS = 2.0
"""A broker that is away must not hold a slot for long."""


class _Publisher:
    app: Celery | None = None
    silent_until = 0.0


_publisher = _Publisher()


def publish_from(app: Celery) -> None:
    """Publish from this process, a slot of the pool."""
    short = {"socket_timeout": TIMEOUT_SECONDS, "socket_connect_timeout": TIMEOUT_SECONDS}
    app.conf.broker_transport_options = {**app.conf.broker_transport_options, **short}
    _publisher.app = app


def lease() -> float | None:
    """Return the lease in seconds if this process publishes messages now, else None."""
    if _publisher.app is None or time.monotonic() < _publisher.silent_until:
        return None
    return get_settings().lease_seconds


def publish_next(task: Dispatched | None) -> None:
    """Publish the message of a task, if there is one. If it cannot be sent, the republisher sends it later."""
    if task is None or _publisher.app is None:
        return
    try:
        publish(_publisher.app, [task])
    except Exception as error:
        _publisher.silent_until = time.monotonic() + SILENCE_SECONDS
        log.warning("broker_away", reason=str(error)[:300], task=str(task.task_id))
