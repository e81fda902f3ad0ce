"""The notifier: sends what receivers do not know yet. A receiver that is down is retried after growing pauses.

A message is sent at least once. Taking a receiver moves its `next_at` forward by a lease, which is renewed before each
message, so that several orchestrators share the work, no transaction stays open in the meantime, and what a dying one
took is sent by another.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.alerts import addresses, notices
from orchestrator.alerts.addresses import Address
from orchestrator.alerts.notices import Notice, Pace
from orchestrator.loops.loop import Loop
from orchestrator.webhooks import messages
from orchestrator.webhooks.deliverer import DISABLE, GONE
from shared.database.connections import autocommit, reason
from shared.settings import Settings
from shared.telemetry import report

log = structlog.get_logger(__name__)

EVERY_SECONDS = 5.0
LEASE_SECONDS = 120.0
REGISTER_SECONDS = 3600.0
STOP_SECONDS = 3.0
AT_ONCE = 8
MINUTE = 60.0
DELAYS = (5.0, 30.0, 2 * MINUTE, 10 * MINUTE, 30 * MINUTE)
"""After the first failed attempt, the second, …; the last one repeats."""
LONGEST_ERROR = 300

WEBHOOKS = text(
    """
    SELECT id, namespace, name, url, secret,
           CASE WHEN rotated_at > now() - interval '1 day' THEN previous_secret END AS previous_secret
        FROM webhooks WHERE enabled AND 'alerts' = ANY (events) ORDER BY id
    """
)
REGISTER = text(
    """
    INSERT INTO alert_receivers AS r (name, webhook_id) SELECT :name, CAST(:webhook AS uuid)
        WHERE CAST(:webhook AS uuid) IS NULL OR EXISTS (SELECT FROM webhooks WHERE id = :webhook)
        ON CONFLICT (name) DO UPDATE SET used_at = now() WHERE r.used_at < now() - interval '1 day'
    """
)
# No attempt is further away than an hour, unless a clock was set back.
WAITING = text("SELECT name FROM alert_receivers WHERE next_at > now() AND next_at < now() + interval '1 hour'")
TAKE = text(
    "UPDATE alert_receivers SET next_at = now() + CAST(:lease AS interval) WHERE name = :name "
    "AND (next_at <= now() OR next_at >= now() + interval '1 hour') RETURNING attempts, next_at"
)
# After the lease, another orchestrator may have taken the receiver: then the time is another.
RENEW = text(
    "UPDATE alert_receivers SET next_at = now() + CAST(:lease AS interval) WHERE name = :name AND next_at = :taken "
    "RETURNING next_at"
)
SETTLE = text(
    "UPDATE alert_receivers SET attempts = :attempts, last_error = :error, "
    "next_at = now() + CAST(:delay AS interval) WHERE name = :name"
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a message: why it was not accepted, if it was not."""

    error: str | None = None
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Hook:
    """A webhook that asks for alerts. It gets those of its namespace."""

    id: UUID
    namespace: str
    label: str
    url: str
    secrets: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the receiver."""
        return f"webhook:{self.id}"

    def send(self, settings: Settings, notice: Notice) -> Outcome:
        """Send a signed message."""
        body = messages.of_alerts(notice.kind, notice.data(notices.base_of(settings)))
        answer = messages.post(settings, self.url, self.secrets, f"alert_{notice.id}", body)
        return Outcome(answer.error, answer.status == GONE)


@dataclass(frozen=True, slots=True)
class Mailbox:
    """An address of the operator. It gets all alerts."""

    address: Address
    namespace: None = None

    @property
    def name(self) -> str:
        """The name of the receiver."""
        return self.address.name

    @property
    def label(self) -> str:
        """The name in logs."""
        return self.address.name

    def send(self, settings: Settings, notice: Notice) -> Outcome:
        """Send plain text."""
        return Outcome(self.address.send(notice.title, notice.text(notices.base_of(settings))))


Receiver = Hook | Mailbox


class Notifier(Loop):
    """Finds receivers with news, and sends it in threads. Every orchestrator may run it."""

    name = "notifier"

    def __init__(
        self, settings: Settings, engine: Engine, *, pace: Pace | None = None, delays: Sequence[float] = DELAYS
    ) -> None:
        """Create the loop without sending anything.

        Args:
            delays: seconds after each failed attempt; the last one repeats.

        Raises:
            NotConfigured: an address is invalid.
        """
        super().__init__()
        self.settings = settings
        self.engine = engine
        self.pace = pace or Pace()
        self.delays = delays
        addresses.check(settings)
        self._mailboxes = [Mailbox(address) for address in addresses.of(settings)]
        self._known: set[str] = set()
        self._register_at = 0.0
        self._under_way: dict[str, threading.Thread] = {}

    def run_once(self) -> float:
        """Start to send to each receiver that has news."""
        for receiver in self._receivers():
            if len(self._under_way) >= AT_ONCE:
                break
            if receiver.name not in self._under_way and self._due(receiver):
                self._start(receiver)
        return min(EVERY_SECONDS, max(0.05, self.pace.window.total_seconds() / 6))

    def close(self) -> None:
        """Give messages in progress a moment to end."""
        ends = time.monotonic() + STOP_SECONDS
        for thread in list(self._under_way.values()):
            thread.join(max(0.0, ends - time.monotonic()))

    def _receivers(self) -> list[Receiver]:
        """Return the receivers that are not waiting for their next attempt."""
        with autocommit(self.engine).connect() as connection:
            rows = connection.execute(WEBHOOKS).all()
            hooks = [
                Hook(row.id, row.namespace, row.name, row.url, tuple(filter(None, (row.secret, row.previous_secret))))
                for row in rows
            ]
            found: list[Receiver] = [*self._mailboxes, *hooks]
            if time.monotonic() >= self._register_at:
                self._known.clear()
                self._register_at = time.monotonic() + REGISTER_SECONDS
            for receiver in found:
                if receiver.name not in self._known:
                    webhook = receiver.id if isinstance(receiver, Hook) else None
                    connection.execute(REGISTER, {"name": receiver.name, "webhook": webhook})
            waiting = set(connection.execute(WAITING).scalars())
        self._known = {receiver.name for receiver in found}
        ready = [receiver for receiver in found if receiver.name not in waiting]
        random.shuffle(ready)
        return ready

    def _due(self, receiver: Receiver) -> list[Notice]:
        with autocommit(self.engine).connect() as connection:
            return notices.due(connection, receiver.name, receiver.namespace, self.pace)

    def _start(self, receiver: Receiver) -> None:
        thread = threading.Thread(target=self._serve, args=(receiver,), name=f"notify {receiver.label}", daemon=True)
        self._under_way[receiver.name] = thread
        try:
            thread.start()
        except Exception:
            del self._under_way[receiver.name]
            raise

    def _serve(self, receiver: Receiver) -> None:
        """Take a receiver, send what it is to get, and settle. Without that, it is taken again after the lease."""
        try:
            with self.engine.begin() as connection:
                lease = timedelta(seconds=LEASE_SECONDS)
                taken = connection.execute(TAKE, {"name": receiver.name, "lease": lease}).one_or_none()
            if taken is not None and (outcome := self._send_all(receiver, taken.next_at)) is not None:
                self._settle(receiver, taken.attempts, outcome)
        except SQLAlchemyError as error:
            log.warning("notice_not_settled", receiver=receiver.label, reason=reason(error))
        finally:
            del self._under_way[receiver.name]

    def _send_all(self, receiver: Receiver, taken: datetime) -> Outcome | None:
        """Send the messages one after the other, until one is not accepted. Another may have sent some since.

        Returns:
            None if the receiver was so slow that another orchestrator has taken it.
        """
        for notice in self._due(receiver):
            renewed = self._renew(receiver, taken)
            if renewed is None:
                return None
            taken = renewed
            outcome = self._send(receiver, notice)
            if outcome.error is not None:
                return outcome
            with self.engine.begin() as connection:
                notices.mark_notified(connection, receiver.name, notice)
            log.info("alerts_sent", receiver=receiver.label, rule=notice.rule, alerts=len(notice.alerts))
            if self.stopping.is_set():
                break
        return Outcome()

    def _renew(self, receiver: Receiver, taken: datetime) -> datetime | None:
        values = {"name": receiver.name, "taken": taken, "lease": timedelta(seconds=LEASE_SECONDS)}
        with self.engine.begin() as connection:
            renewed: datetime | None = connection.scalar(RENEW, values)
        return renewed

    def _send(self, receiver: Receiver, notice: Notice) -> Outcome:
        try:
            return receiver.send(self.settings, notice)
        except Exception as error:
            log.error("notice_broke", receiver=receiver.label, rule=notice.rule, exc_info=True)
            report(error)
            return Outcome("Sending failed because of a bug in Minions. The orchestrator's log has the details.")

    def _settle(self, receiver: Receiver, attempts: int, outcome: Outcome) -> None:
        failed = attempts + 1 if outcome.error is not None else 0
        delay = self.delays[min(failed, len(self.delays)) - 1] * random.uniform(1.0, 1.2) if failed else 0.0  # noqa: S311
        error = outcome.error and outcome.error[:LONGEST_ERROR]
        with self.engine.begin() as connection:
            values = {"name": receiver.name, "attempts": failed, "error": error, "delay": timedelta(seconds=delay)}
            connection.execute(SETTLE, values)
            if outcome.gone and isinstance(receiver, Hook):
                connection.execute(DISABLE, {"webhook": receiver.id, "url": receiver.url, "reason": error})
        if failed:
            log.warning(
                "alerts_not_sent", receiver=receiver.label, attempts=failed, next_in_seconds=round(delay), reason=error
            )
