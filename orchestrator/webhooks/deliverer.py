"""Webhooks: notify subscribers that a task has ended, at least once.

The transaction that ended the task recorded the delivery. This loop takes it, posts it and settles it. Taking moves
`next_at` forward by a lease, so that no transaction stays open during a request, several orchestrators share the work,
and deliveries taken by a dying one become due again. A message keeps its id, by which receivers drop repeats.

Each delivery has a thread; a webhook has a few at most, so that a slow endpoint delays the others little.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import structlog
from sqlalchemy import Engine, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, INTEGER
from sqlalchemy.dialects.postgresql import UUID as PgUUID
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.loops.listener import Listener
from orchestrator.loops.loop import Loop
from orchestrator.webhooks import messages
from orchestrator.webhooks.messages import Answer
from shared.database.connections import reason
from shared.settings import Settings
from shared.telemetry import report

log = structlog.get_logger(__name__)

AT_ONCE = 16
AT_ONCE_PER_WEBHOOK = 4
IDLE_SECONDS = 1.0
# While deliveries are in progress, new ones are looked up at this interval and whenever one has ended.
BUSY_SECONDS = 0.25
STOP_SECONDS = 3.0
# Longer than a delivery plus a slow resolver.
LEASE_SECONDS = 60.0
# After the first attempt, the second, …: ten attempts within two days.
MINUTE, HOUR = 60.0, 3600.0
DELAYS = (5.0, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, *([10 * HOUR] * 4))
LONGEST_DELAY = 10 * HOUR
GONE = 410

TAKE = text(
    """
    WITH due AS (
        SELECT d.id FROM webhooks w
            LEFT JOIN unnest(:busy, :counts) AS b (id, under_way) ON b.id = w.id
            CROSS JOIN LATERAL (
                SELECT o.id, o.next_at FROM webhook_deliveries o
                    WHERE o.webhook_id = w.id AND o.status = 'pending' AND o.next_at <= now()
                    ORDER BY o.next_at LIMIT GREATEST(0, :per_webhook - COALESCE(b.under_way, 0))
                    FOR NO KEY UPDATE SKIP LOCKED) d
            WHERE w.enabled ORDER BY d.next_at LIMIT :most
    )
    UPDATE webhook_deliveries d SET attempts = d.attempts + 1, next_at = now() + :lease
        FROM due, webhooks w WHERE d.id = due.id AND w.id = d.webhook_id
        RETURNING d.id, d.webhook_id, d.task_id, d.attempts AS attempt, w.name, w.url, w.secret,
                  CASE WHEN w.rotated_at > now() - interval '1 day' THEN w.previous_secret END AS previous_secret
    """
).bindparams(bindparam("busy", type_=ARRAY(PgUUID)), bindparam("counts", type_=ARRAY(INTEGER)))
# Success is final, even if another orchestrator took it since; a failure counts only for the latest attempt.
SETTLE = text(
    """
    UPDATE webhook_deliveries SET status = :status, last_status = :last_status, last_error = :last_error,
            next_at = CASE WHEN :status = 'pending' THEN now() + :delay ELSE next_at END,
            finished_at = CASE WHEN :status <> 'pending' THEN now() END
        WHERE id = :id AND status = 'pending' AND (attempts = :attempt OR :status = 'delivered')
    """
)
DISABLE = text(
    "UPDATE webhooks SET enabled = false, disabled_reason = :reason WHERE id = :webhook AND url = :url AND enabled"
)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that was taken and must be posted."""

    id: UUID
    webhook_id: UUID
    task_id: UUID
    attempt: int
    name: str
    url: str
    secret: str
    previous_secret: str | None

    @property
    def secrets(self) -> list[str]:
        """Secrets that sign the message."""
        return [secret for secret in (self.secret, self.previous_secret) if secret]


class Webhooks(Loop):
    """owed -> posted -> settled."""

    name = "webhooks"

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        *,
        delays: Sequence[float] = DELAYS,
        lease: float = LEASE_SECONDS,
    ) -> None:
        """Create the loop without sending anything.

        Args:
            delays: seconds after each failed attempt; the delivery fails when there is none left.
            lease: seconds until a delivery that was taken and not settled becomes due again.
        """
        super().__init__()
        self.settings = settings
        self.engine = engine
        self.delays = delays
        self.lease = lease
        self._under_way: dict[threading.Thread, Delivery] = {}
        self._ended = threading.Event()
        self._listener = Listener(settings, "minion_webhooks")

    def run_once(self) -> float:
        """Take the due deliveries for which threads are free, and start to post them."""
        self._listener.open()
        self._ended.clear()
        for delivery, body in self._take():
            self._start(delivery, body)
        return BUSY_SECONDS if self._under_way else IDLE_SECONDS

    def wait(self, seconds: float) -> None:
        """Wait for the end of a delivery while some are in progress, else for a notification; or until the timeout."""
        if self._under_way:
            self._ended.wait(seconds)
            self._listener.drain()
        else:
            self._listener.wait(seconds)

    def close(self) -> None:
        """Give deliveries in progress a moment to end. The remaining ones become due again after their lease."""
        ends = time.monotonic() + STOP_SECONDS
        for thread in list(self._under_way):
            thread.join(max(0.0, ends - time.monotonic()))
        self._listener.close()

    def _take(self) -> list[tuple[Delivery, bytes]]:
        under_way = list(self._under_way.values())
        busy = Counter(delivery.webhook_id for delivery in under_way)
        values = {
            "busy": list(busy.keys()),
            "counts": list(busy.values()),
            "per_webhook": AT_ONCE_PER_WEBHOOK,
            "most": AT_ONCE - len(under_way),
            "lease": timedelta(seconds=self.lease),
        }
        with self.engine.begin() as connection:
            taken = [Delivery(**row) for row in connection.execute(TAKE, values).mappings()]
            bodies = messages.of_tasks(connection, {one.task_id for one in taken}) if taken else {}
        return [(one, bodies[one.task_id]) for one in taken if one.task_id in bodies]

    def _start(self, delivery: Delivery, body: bytes) -> None:
        thread = threading.Thread(
            target=self._deliver, args=(delivery, body), name=f"webhook {delivery.name}", daemon=True
        )
        self._under_way[thread] = delivery
        try:
            thread.start()
        except Exception:
            # The machine has no thread to spare: the delivery becomes due again after its lease.
            del self._under_way[thread]
            raise

    def _deliver(self, delivery: Delivery, body: bytes) -> None:
        """Post and settle. If settling fails, the delivery becomes due again after its lease."""
        try:
            self._settle(delivery, self._post(delivery, body))
        except SQLAlchemyError as error:
            log.warning("delivery_not_settled", delivery=str(delivery.id), reason=reason(error))
        finally:
            del self._under_way[threading.current_thread()]
            self._ended.set()

    def _post(self, delivery: Delivery, body: bytes) -> Answer:
        """Post once. An internal error counts as a failed attempt too, so that a persistent one ends at some point."""
        try:
            return messages.post(self.settings, delivery.url, delivery.secrets, str(delivery.id), body)
        except Exception as error:
            log.error("delivery_broke", delivery=str(delivery.id), webhook=delivery.name, exc_info=True)
            report(error)
            return Answer(
                None, "Sending the message failed because of a bug in Minions. The orchestrator's log has the details."
            )

    def _settle(self, delivery: Delivery, answer: Answer) -> None:
        status = self._verdict(delivery, answer)
        values = {
            "id": delivery.id,
            "attempt": delivery.attempt,
            "status": status,
            "last_status": answer.status,
            "last_error": answer.error,
            "delay": timedelta(seconds=self._delay(delivery, answer) if status == "pending" else 0),
        }
        with self.engine.begin() as connection:
            connection.execute(SETTLE, values)
            if answer.status == GONE:
                connection.execute(
                    DISABLE, {"webhook": delivery.webhook_id, "url": delivery.url, "reason": answer.error}
                )
        tell = log.info if answer.delivered else log.warning
        tell(
            "webhook_posted",
            webhook=delivery.name,
            delivery=str(delivery.id),
            task=str(delivery.task_id),
            attempt=delivery.attempt,
            answer=answer.status,
            status=status,
        )

    def _verdict(self, delivery: Delivery, answer: Answer) -> str:
        if answer.delivered:
            return "delivered"
        return "failed" if answer.status == GONE or delivery.attempt > len(self.delays) else "pending"

    def _delay(self, delivery: Delivery, answer: Answer) -> float:
        """Return the seconds until the next attempt: more if the endpoint asks for it, and jittered."""
        delay = max(self.delays[delivery.attempt - 1], answer.retry_after or 0.0)
        return min(LONGEST_DELAY, delay) * random.uniform(1.0, 1.2)  # noqa: S311 - not a secret
