"""Plain Celery, set up as its documentation recommends if tasks must not be lost."""

from __future__ import annotations

import os
import time
from typing import Any

import psycopg
from celery import Celery


def make_app(broker: str, visibility: float) -> Celery:
    """Return an application whose messages are acknowledged late.

    Args:
        visibility: seconds after which Redis redelivers the messages of a lost worker. Celery's default is an hour;
            here it is longer than any task, and short enough to wait for.
    """
    app = Celery("plain", broker=broker, set_as_current=False)
    app.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": visibility,
            "unacked_restore_interval": 0.5,
            "unacked_restore_throttle": 1,
            "socket_timeout": 10.0,
            "socket_keepalive": True,
            "retry_on_timeout": True,
        },
    )
    return app


app = make_app(os.environ.get("PLAIN_BROKER", ""), float(os.environ.get("PLAIN_VISIBILITY", "3600")))
_connections: list[psycopg.Connection[Any]] = []


@app.task(  # type: ignore[untyped-decorator]
    name="plain.commit", autoretry_for=(psycopg.OperationalError,), max_retries=None, default_retry_delay=1
)
def commit(number: int, seconds: float) -> None:
    """Work for `seconds`, then commit the effect."""
    time.sleep(seconds)
    try:
        connection = _connections[0] if _connections else _connect()
        connection.execute("INSERT INTO plain_effects (number) VALUES (%s)", [number])
    except psycopg.OperationalError:
        _connections.clear()
        raise


def _connect() -> psycopg.Connection[Any]:
    connection = psycopg.connect(os.environ["PLAIN_DATABASE"], autocommit=True, connect_timeout=5)
    _connections.append(connection)
    return connection
