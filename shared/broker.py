"""The Celery application and its messages, shared by both sides.

A message is `{v, task_id, claim}` and nothing more. Redis may lose, repeat or delay it: the claim in PostgreSQL
decides whether it is still valid. The message of a pack has further tasks in its header `pack`; a worker of release 0.2
runs the first one, and the others are published again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

import redis
from celery import Celery
from kombu.exceptions import BatchPublishError, OperationalError

from shared.settings import Settings
from shared.tasks.lifecycle import Dispatched

RUN_TASK = "minion.run"
RUN_PACK = "minion.run_pack"
"""A pack's message inside a worker, and after a worker that stopped has put it back into its queue."""
SUBMIT_TASK = "minion.submit"
SUBMIT_QUEUE = "minion.submit"
MESSAGE_VERSION = 1


BROKER_AWAY = (redis.RedisError, OperationalError, BatchPublishError, OSError)
"""Exceptions that the broker clients raise while the broker is away."""


def make_app(settings: Settings) -> Celery:
    """Return the Celery application for this broker.

    Raises:
        NotConfigured: there is no broker address.
    """
    app = Celery("minions", broker=settings.require_broker_url(), set_as_current=True)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_acks_late=True,
        task_acks_on_failure=True,
        task_acks_on_timeout=True,
        task_reject_on_worker_lost=False,
        task_default_queue="minion.default",
        task_send_sent_event=False,
        worker_send_task_events=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_soft_shutdown_timeout=10.0,
        worker_enable_soft_shutdown_on_idle=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_consumer="workers.consumer:Consumer",
        worker_autoscaler="workers.lane.autoscaler:Autoscaler",
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # An error in Redis' answer (disk full, out of memory, read-only) does not end the worker: it reconnects.
        broker_channel_error_retry=True,
        broker_pool_acquire_timeout=10.0,
        broker_transport_options={
            # Redis keeps no record of what a worker holds: PostgreSQL does, and lost messages are published again.
            "ack_emulation": False,
            "socket_timeout": 10.0,
            "socket_connect_timeout": 5.0,
            "socket_keepalive": True,
            # With `retry_on_timeout`, kombu publishes batches message by message.
            "health_check_interval": 25,
        },
    )
    return app


def publish(app: Celery, tasks: Iterable[Dispatched]) -> None:
    """Send one message for each task, as `publish_packs` does."""
    publish_packs(app, ([task] for task in tasks))


def publish_packs(app: Celery, packs: Iterable[Sequence[Dispatched]]) -> None:
    """Send one message for each pack to its capability's queue, in one batch.

    Args:
        packs: the tasks of each message, one or more of the same capability.

    Raises:
        BROKER_AWAY: some or all messages were not sent. Their tasks stay queued in PostgreSQL and are published again.
    """
    with app.producer_pool.acquire(block=True, timeout=10) as producer, producer.batch(max_size=500):
        for tasks in packs:
            message = _message(app, *tasks)
            producer.publish(
                message.body,
                # The default exchange: its routing key is the queue itself. It needs no binding in Redis,
                # so nothing is lost after a FLUSHALL.
                exchange="",
                routing_key=tasks[0].queue,
                serializer="json",
                headers=message.headers,
                **message.properties,
            )


def message_id(task_id: UUID, claim: int) -> str:
    """Return the Celery id of a message: the task's id and the claim that the message leads to."""
    return f"{task_id}.{claim + 1}"


def _message(app: Celery, task: Dispatched, *others: Dispatched) -> Any:
    message = app.amqp.as_task_v2(
        message_id(task.task_id, task.claim),
        RUN_TASK,
        kwargs={"v": MESSAGE_VERSION, "task_id": str(task.task_id), "claim": task.claim},
        time_limit=task.time_limit,
        soft_time_limit=task.soft_time_limit,
        # Shown by Flower and in Celery's events.
        shadow=task.agent_name,
        argsrepr="",
        kwargsrepr=f"task_id={task.task_id} claim={task.claim}",
        ignore_result=True,
    )
    message.headers["has_model"] = task.has_model
    if others:
        message.headers["pack"] = [
            [str(other.task_id), other.claim, other.time_limit, other.soft_time_limit, other.agent_name]
            for other in others
        ]
    return message
