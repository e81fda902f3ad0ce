"""The ingress: other Celery users submit tasks with `app.send_task("minion.submit", kwargs={…})`.

Senders use the queue `minion.submit`, with the fields of a task request as keyword arguments. Accepted means that the
row is committed; the Celery id is the idempotency key. A refusal is stored as a failed task, which the sender can find
by its label `celery_id`, but only after the submissions waiting behind it were processed.

Senders have no API key. MINION_CELERY_NAMESPACE, MINION_CELERY_AGENTS and MINION_CELERY_TENANT bound all of them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis
import structlog
from sqlalchemy import Connection, Engine, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from orchestrator.loops.loop import Loop
from orchestrator.submissions import Submissions
from shared.access.scope import ANY, DEFAULT_NAMESPACE, SEPARATOR, Scope
from shared.broker import SUBMIT_QUEUE, SUBMIT_TASK
from shared.contracts.requests import TaskRequest
from shared.contracts.strict_json import parse
from shared.database.connections import is_transient
from shared.errors import InvalidInput, MinionError
from shared.settings import Settings
from shared.tasks import lifecycle
from shared.tasks.envelopes import Envelope, Foreign, open_envelope
from shared.tasks.lifecycle import Accepted
from shared.tasks.records import NewTask
from shared.tasks.submission import prepare_each
from shared.trace_context import HEADER, read_header

log = structlog.get_logger(__name__)

BATCH = 50
# Number of items from the second line after each batch of the first: enough for progress, few enough not to be noticed.
FEW = 5
WAIT_SECONDS = 0.5
HOLDER = "A Celery submitter (MINION_CELERY_NAMESPACE, MINION_CELERY_AGENTS, MINION_CELERY_TENANT)"
REFUSED = text(
    "SELECT minion_refuse_v2(:agent, :key, :celery_id, :error, :submitted_by, :namespace, :tenant)"
).bindparams(bindparam("error", type_=JSONB))


@dataclass(frozen=True, slots=True)
class Submission:
    """A message that requests a task.

    Attributes:
        item: the raw item in Redis.
    """

    item: bytes
    envelope: Envelope

    @property
    def celery_id(self) -> str:
        """The id that the sender knows, or else one that is the same for the same message."""
        found = self.envelope.headers.get("id") or self.envelope.properties.get("correlation_id")
        return _storable(found)[:255] if found else hashlib.sha256(self.item).hexdigest()

    @property
    def submitter(self) -> str:
        """The sending process, for the record."""
        return f"celery:{_storable(self.envelope.headers.get('origin') or 'unknown')}"[:200]

    @property
    def callers_span(self) -> str | None:
        """The sender's span, as OpenTelemetry's instrumentation of Celery adds it to the headers."""
        sent = self.envelope.headers.get(HEADER)
        return read_header(sent) if isinstance(sent, str) else None


Asked = tuple[Submission, TaskRequest]


class Ingress(Loop):
    """Accepts submissions from `minion.submit`, and removes each one when its row is committed."""

    name = "ingress"

    def __init__(self, settings: Settings, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self._body_limit = min(settings.max_body_bytes, 6 * settings.max_input_bytes + (64 << 10))
        self._item_limit = settings.max_body_bytes * 4 // 3 + (64 << 10)
        self._patience = settings.lease_seconds
        self._scope = scope_of(settings)
        self._queue = Submissions(patience=self._patience, largest=self._item_limit)
        self._adopt_at = 0.0

    def run_once(self) -> float:
        """Process one batch, and a few items of the second line, or many if the first line is empty."""
        self._adopt()
        batch = self._queue.take(BATCH)
        with self._returning():
            refused = self._accept_good(batch)
            # A refusal can wait: the submissions behind it may be valid.
            self._queue.put_off([submission.item for submission, _ in refused])
        again = self._queue.take_refused(FEW if batch else BATCH)
        with self._returning():
            for submission, error in self._accept_good(again):
                self._record(submission, error)
        if not batch and not again:
            self._queue.wait(WAIT_SECONDS)
        return 0.0

    def close(self) -> None:
        """Close the broker's connection."""
        self._queue.close()

    def _adopt(self) -> None:
        if time.monotonic() >= self._adopt_at:
            self._adopt_at = time.monotonic() + self._patience
            try:
                self._queue.adopt()
            except redis.ResponseError as error:
                log.warning("cannot_adopt", reason=str(error)[:300])

    @contextmanager
    def _returning(self) -> Iterator[None]:
        """Keep submissions in the broker while the database is unavailable. No other error may keep them at the head of
        the queue, or they would be retried indefinitely.
        """
        try:
            yield
        except DBAPIError as error:
            if is_transient(error):
                self._queue.give_back()
            raise

    def _accept_good(self, items: list[bytes]) -> list[tuple[Submission, MinionError]]:
        """Create tasks for the acceptable submissions, and return the others."""
        asked, refused = self._requests(items)
        for submission, prepared in self._prepare(asked):
            if isinstance(prepared, MinionError):
                refused.append((submission, prepared))
                continue
            try:
                with self.engine.begin() as connection:
                    accepted = self._accept(connection, prepared)
            except Exception as error:
                refused.append((submission, _refusal(submission, error)))
            else:
                self._queue.finish(submission.item)
                log.info("accepted", task=str(accepted.task_id), created=accepted.created)
        return refused

    def _accept(self, connection: Connection, task: NewTask) -> Accepted:
        lifecycle.check_reach(connection, task, self._scope.agents)
        [accepted] = lifecycle.accept(connection, [task])
        if not accepted.created:
            # Another submitter may have taken the key since.
            lifecycle.check_reach(connection, task, self._scope.agents)
        return accepted

    def _requests(self, items: list[bytes]) -> tuple[list[Asked], list[tuple[Submission, MinionError]]]:
        """Parse items into requests and refusals. Items that are not submissions are set aside."""
        asked: list[Asked] = []
        refused: list[tuple[Submission, MinionError]] = []
        for item in items:
            try:
                submission = Submission(item, self._open(item))
                asked.append((submission, self._request(submission)))
            except Foreign as why:
                self._queue.set_aside(item, str(why))
            except MinionError as error:
                refused.append((submission, error))
        return asked, refused

    def _open(self, item: bytes) -> Envelope:
        envelope = open_envelope(item, limit=self._item_limit)
        if envelope.headers.get("task") != SUBMIT_TASK:
            raise Foreign(f"the queue {SUBMIT_QUEUE} accepts only the task {SUBMIT_TASK}")
        return envelope

    def _prepare(self, asked: list[Asked]) -> Iterator[tuple[Submission, NewTask | MinionError]]:
        """Check all submissions together; after an unexpected error one by one, so that it affects no others."""
        try:
            yield from zip([submission for submission, _ in asked], self._prepare_together(asked), strict=True)
        except Exception as error:
            if len(asked) == 1:
                yield asked[0][0], _refusal(asked[0][0], error)
            else:
                for each in asked:
                    yield from self._prepare([each])

    def _prepare_together(self, asked: list[Asked]) -> list[NewTask | MinionError]:
        submitters = [submission.submitter for submission, _ in asked]
        requests = [request for _, request in asked]
        return prepare_each(self.engine, requests, submitted_by=submitters, scope=self._scope) if asked else []

    def _request(self, submission: Submission) -> TaskRequest:
        envelope = submission.envelope
        if envelope.content_type != "application/json":
            raise InvalidInput(f"{SUBMIT_TASK} accepts JSON only, not {envelope.content_type[:100]!r}.")
        packed = envelope.unpack(limit=self._body_limit)
        body = parse(packed, what="The message", limit=self._body_limit)
        if not isinstance(body, list) or len(body) != 3 or body[0] != [] or not isinstance(body[1], dict):
            raise InvalidInput(f"{SUBMIT_TASK} accepts keyword arguments only (message protocol 2).")
        fields: dict[str, Any] = body[1]
        celery_id = submission.celery_id
        if isinstance(labels := fields.get("labels") or {}, dict):
            fields["labels"] = {**labels, "celery_id": celery_id}
        if fields.get("idempotency_key") is None:
            fields["idempotency_key"] = celery_id
        if fields.get("traceparent") is None and (span := submission.callers_span) is not None:
            fields["traceparent"] = span
        return TaskRequest.parse(self._scope.narrow(fields))

    def _refusal_key(self, submission: Submission) -> str:
        """Return the idempotency key of a refusal, which is a name of the bound tenant and of no other."""
        if self._scope.tenant is None:
            return submission.celery_id
        return f"{self._scope.tenant}{SEPARATOR}{submission.celery_id.replace(SEPARATOR, ' ')}"

    def _record(self, submission: Submission, error: MinionError) -> None:
        """Store a refusal as a failed task."""
        log.warning("refused", celery_id=submission.celery_id, error=error.code)
        values = {
            "agent": None,
            "key": self._refusal_key(submission),
            "celery_id": submission.celery_id,
            "error": error.as_dict(),
            "submitted_by": submission.submitter,
            "namespace": self._scope.namespace or DEFAULT_NAMESPACE,
            "tenant": None if (self._scope.tenant or ANY).endswith(ANY) else self._scope.tenant,
        }
        try:
            with self.engine.begin() as connection:
                task_id = connection.scalar(REFUSED, values)
        except DBAPIError as broken:
            if is_transient(broken):
                raise
            log.exception("cannot_be_recorded", celery_id=submission.celery_id)
            self._queue.set_aside(submission.item, "it can neither be accepted nor be recorded as refused")
        else:
            self._queue.finish(submission.item)
            log.info("refusal_stored", task=str(task_id))


def scope_of(settings: Settings) -> Scope:
    """Return the bounds of all Celery submitters."""
    return Scope(
        namespace=settings.celery_namespace,
        agents=tuple(settings.celery_agents),
        tenant=settings.celery_tenant,
        holder=HOLDER,
    )


def _refusal(submission: Submission, error: Exception) -> MinionError:
    """Return the reason for refusing a submission. Raise other errors, such as an unavailable database."""
    if isinstance(error, MinionError):
        return error
    if is_transient(error) or isinstance(error, PoolTimeout):
        raise error
    log.error("cannot_be_accepted", celery_id=submission.celery_id, exc_info=error)
    return InvalidInput("The message contains something that cannot be read or stored.")


def _storable(value: object) -> str:
    """Convert a value from outside to text that PostgreSQL can hold."""
    return str(value).replace("\x00", "").encode("utf-8", "replace").decode()
