"""The ingress: other Celery users hand in tasks with `app.send_task("minion.submit", kwargs={…})`.

They send to the queue `minion.submit`, with the fields of a task request as keyword arguments. Accepted means that
the row is committed; the Celery id is the idempotency key. A refusal is stored as a failed task, where the sender can
find it by its label `celery_id`.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import structlog
from celery import Celery
from kombu.connection import Connection as BrokerConnection
from kombu.entity import Queue
from kombu.message import Message
from kombu.messaging import Consumer
from sqlalchemy import Connection, Engine, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError

from orchestrator.loop import Loop
from shared.broker import SUBMIT_QUEUE, SUBMIT_TASK
from shared.database import is_transient
from shared.errors import IdempotencyConflict, InvalidInput, MinionError
from shared.json_values import parse
from shared.schemas import TaskRequest
from shared.settings import Settings
from shared.submission import submit

log = structlog.get_logger(__name__)

REFUSED = text("SELECT minion_refuse(:agent, :key, :error, :submitted_by)").bindparams(bindparam("error", type_=JSONB))


class Ingress(Loop):
    """Consumes `minion.submit`; acknowledges a message when its row is committed."""

    name = "ingress"

    def __init__(self, settings: Settings, engine: Engine, app: Celery) -> None:
        super().__init__()
        self.settings = settings
        self.engine = engine
        self.app = app

    def round(self) -> float:
        """Consumes until the broker goes away or the orchestrator stops."""
        with self.app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
            self._consume(connection)
        return 0.0

    def _consume(self, connection: BrokerConnection) -> None:
        queue = Queue(SUBMIT_QUEUE, routing_key=SUBMIT_QUEUE)
        with (
            connection.channel() as channel,
            Consumer(channel, [queue], on_message=self._on_message, accept=["json"], prefetch_count=50),
        ):
            while not self.stopping.is_set():
                try:
                    connection.drain_events(timeout=0.5)
                except TimeoutError:
                    continue

    def _on_message(self, message: Message) -> None:
        """Accepts or refuses one message. While the database is away it stays in the broker."""
        try:
            self._accept(message)
        except DBAPIError as error:
            if is_transient(error):
                message.requeue()
                raise
            self._refuse(message, InvalidInput("The message holds something that cannot be stored."))
        message.ack()

    def _accept(self, message: Message) -> None:
        try:
            request = self._request(message)
            with self.engine.begin() as connection:
                accepted = submit(connection, request, submitted_by=f"celery:{_origin(message)}"[:200])
        except MinionError as error:
            self._refuse(message, error)
        else:
            log.info("accepted", task=str(accepted.task_id), created=accepted.created)

    def _request(self, message: Message) -> TaskRequest:
        body = parse(message.body, what="The message", limit=self.settings.max_body_bytes)
        if message.headers.get("task") != SUBMIT_TASK:
            raise InvalidInput(f"The queue {SUBMIT_QUEUE!r} takes the task {SUBMIT_TASK!r} only.")
        if not isinstance(body, list) or len(body) != 3 or not isinstance(body[0], list) or body[0]:
            raise InvalidInput(f"{SUBMIT_TASK} takes keyword arguments only (message protocol 2).")
        fields: Any = body[1] if isinstance(body[1], dict) else {}
        celery_id = _celery_id(message)
        return TaskRequest.parse({"idempotency_key": celery_id, "labels": {"celery_id": celery_id}, **fields})

    def _refuse(self, message: Message, error: MinionError) -> None:
        log.warning("refused", celery_id=_celery_id(message), error=error.code)
        if isinstance(error, IdempotencyConflict):
            return
        with self.engine.begin() as connection:
            task_id = _store_refusal(connection, message, error)
        log.info("refusal_stored", task=str(task_id))


def _store_refusal(connection: Connection, message: Message, error: MinionError) -> UUID | None:
    values = {
        "agent": None,
        "key": _celery_id(message),
        "error": error.as_dict(),
        "submitted_by": f"celery:{_origin(message)}"[:200],
    }
    stored: UUID | None = connection.scalar(REFUSED, values)
    return stored


def _celery_id(message: Message) -> str:
    return str(message.headers.get("id") or message.properties.get("correlation_id") or message.delivery_tag)[:255]


def _origin(message: Message) -> str:
    return str(message.headers.get("origin") or "unknown").replace("\x00", "")
