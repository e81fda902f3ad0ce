"""The ingress: other Celery users hand in tasks with `app.send_task("minion.submit", kwargs={…})`.

They send to the queue `minion.submit`, with the fields of a task request as keyword arguments. Accepted means that
the row is committed; the Celery id is the idempotency key. A refusal is stored as a failed task, where the sender can
find it by its label `celery_id`.
"""

from __future__ import annotations

from typing import Any

import structlog
from celery import Celery
from kombu.connection import Connection as BrokerConnection
from kombu.entity import Queue
from kombu.message import Message
from kombu.messaging import Consumer
from sqlalchemy import Engine, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError

from orchestrator.loop import Loop
from shared import lifecycle
from shared.broker import SUBMIT_QUEUE, SUBMIT_TASK
from shared.database import is_transient
from shared.errors import InvalidInput, MinionError
from shared.json_values import parse
from shared.schemas import TaskRequest
from shared.settings import Settings
from shared.submission import prepare

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
            Consumer(
                channel,
                [queue],
                on_message=self._on_message,
                on_decode_error=self._on_unreadable,
                accept=["json"],
                prefetch_count=50,
            ),
        ):
            while not self.stopping.is_set():
                try:
                    connection.drain_events(timeout=0.5)
                except TimeoutError:
                    continue

    def _on_message(self, message: Message) -> None:
        """Accepts or refuses one message. While the database is away it stays in the broker; nothing else may keep
        it there, or it would come again and again.
        """
        try:
            self._accept(message)
        except Exception as error:
            if isinstance(error, DBAPIError) and is_transient(error):
                message.requeue()
                raise
            log.exception("cannot_be_accepted", celery_id=_celery_id(message))
            self._refuse(message, InvalidInput("The message holds something that cannot be read or stored."))
        message.ack()

    def _on_unreadable(self, message: Message, error: Exception) -> None:
        """A body that cannot be unpacked."""
        self._refuse(message, InvalidInput(f"The message cannot be unpacked: {type(error).__name__}."))
        message.ack()

    def _accept(self, message: Message) -> None:
        try:
            request = self._request(message)
            prepared = prepare(self.engine, [request], submitted_by=_submitter(message))
            with self.engine.begin() as connection:
                [accepted] = lifecycle.accept(connection, prepared)
        except MinionError as error:
            self._refuse(message, error)
        else:
            log.info("accepted", task=str(accepted.task_id), created=accepted.created)

    def _request(self, message: Message) -> TaskRequest:
        if message.content_type != "application/json":
            raise InvalidInput(f"{SUBMIT_TASK} takes JSON only, not {str(message.content_type)[:100]!r}.")
        if _headers(message).get("task") != SUBMIT_TASK:
            raise InvalidInput(f"The queue {SUBMIT_QUEUE!r} takes the task {SUBMIT_TASK!r} only.")
        body = parse(message.body, what="The message", limit=self.settings.max_body_bytes)
        if not isinstance(body, list) or len(body) != 3 or body[0] != [] or not isinstance(body[1], dict):
            raise InvalidInput(f"{SUBMIT_TASK} takes keyword arguments only (message protocol 2).")
        fields: dict[str, Any] = body[1]
        celery_id = _celery_id(message)
        if isinstance(labels := fields.get("labels") or {}, dict):
            fields["labels"] = {**labels, "celery_id": celery_id}
        if fields.get("idempotency_key") is None:
            fields["idempotency_key"] = celery_id
        return TaskRequest.parse(fields)

    def _refuse(self, message: Message, error: MinionError) -> None:
        log.warning("refused", celery_id=_celery_id(message), error=error.code)
        values = {
            "agent": None,
            "key": _celery_id(message),
            "error": error.as_dict(),
            "submitted_by": _submitter(message),
        }
        with self.engine.begin() as connection:
            task_id = connection.scalar(REFUSED, values)
        log.info("refusal_stored", task=str(task_id))


def _headers(message: Message) -> dict[str, Any]:
    return message.headers if isinstance(message.headers, dict) else {}


def _celery_id(message: Message) -> str:
    found = _headers(message).get("id") or message.properties.get("correlation_id") or message.delivery_tag
    return _storable(found)[:255]


def _submitter(message: Message) -> str:
    return f"celery:{_storable(_headers(message).get('origin') or 'unknown')}"[:200]


def _storable(value: object) -> str:
    """Text that PostgreSQL can hold, whatever came over the wire."""
    return str(value).replace("\x00", "").encode("utf-8", "replace").decode()
