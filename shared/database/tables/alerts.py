"""Alerts, what their receivers know of them, silences, and what is remembered of queues.

Only the orchestrator's `orchestrator.alerts` and the API write them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Double, ForeignKey, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from shared.database.tables.base import EMPTY_OBJECT, NOW, Base, created, new_id

STATES = "'firing', 'acknowledged', 'silenced', 'resolved'"


class Alert(Base):
    """A condition or an anomaly, from when it was first seen. The same one has a new row after it was resolved.

    `namespace` is NULL if it is about the whole installation. `changed_at`: when it got its present state.
    """

    __tablename__ = "alerts"
    __table_args__ = (
        CheckConstraint(f"state IN ({STATES})", name="state"),
        CheckConstraint("(state = 'resolved') = (resolved_at IS NOT NULL)", name="resolved"),
        Index("alerts_namespace_idx", "namespace", "id"),
        Index("alerts_changed_at_idx", "changed_at"),
    )

    id: Mapped[UUID] = new_id()
    rule: Mapped[str]
    namespace: Mapped[str | None]
    subject: Mapped[str]
    agent: Mapped[str | None]
    capability: Mapped[str | None]
    state: Mapped[str] = mapped_column(server_default="firing")
    sentence: Mapped[str]
    value: Mapped[float | None] = mapped_column(Double)
    usual: Mapped[float | None] = mapped_column(Double)
    low: Mapped[float | None] = mapped_column(Double)
    high: Mapped[float | None] = mapped_column(Double)
    unit: Mapped[str | None]
    facts: Mapped[dict[str, Any]] = mapped_column(server_default=EMPTY_OBJECT)
    first_seen: Mapped[datetime] = mapped_column(server_default=NOW)
    last_seen: Mapped[datetime] = mapped_column(server_default=NOW)
    changed_at: Mapped[datetime] = mapped_column(server_default=NOW)
    resolved_at: Mapped[datetime | None]
    acknowledged_at: Mapped[datetime | None]
    acknowledged_by: Mapped[str | None]


Index(
    "alerts_open_idx",
    Alert.rule,
    func.coalesce(Alert.namespace, text("''")),
    Alert.subject,
    unique=True,
    postgresql_where=text("state <> 'resolved'"),
)


class AlertSilence(Base):
    """No notifications about matching alerts until a time. A column that is NULL matches all.

    `namespace` is NULL in a silence for the whole installation.
    """

    __tablename__ = "alert_silences"
    __table_args__ = (CheckConstraint("num_nonnulls(rule, agent, capability, subject) > 0", name="matcher"),)

    id: Mapped[UUID] = new_id()
    namespace: Mapped[str | None]
    rule: Mapped[str | None]
    agent: Mapped[str | None]
    capability: Mapped[str | None]
    subject: Mapped[str | None]
    until_at: Mapped[datetime]
    reason: Mapped[str]
    created_at: Mapped[datetime] = created()
    created_by: Mapped[str]


class AlertReceiver(Base):
    """A receiver of notifications: a webhook that asks for alerts, or an address of the operator.

    `name` is `webhook:` and its id, or the kind of an address and a digest of it. A receiver that fails is tried again
    at `next_at`.
    """

    __tablename__ = "alert_receivers"

    name: Mapped[str] = mapped_column(primary_key=True)
    webhook_id: Mapped[UUID | None] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"), index=True)
    attempts: Mapped[int] = mapped_column(server_default="0")
    next_at: Mapped[datetime] = mapped_column(server_default=NOW)
    last_error: Mapped[str | None]
    created_at: Mapped[datetime] = created()
    used_at: Mapped[datetime] = mapped_column(server_default=NOW)


class AlertNotice(Base):
    """The state of an alert that a receiver was notified of last."""

    __tablename__ = "alert_notices"
    __table_args__ = (Index("alert_notices_receiver_idx", "receiver", "at"),)

    alert_id: Mapped[UUID] = mapped_column(ForeignKey("alerts.id", ondelete="CASCADE"), primary_key=True)
    receiver: Mapped[str] = mapped_column(ForeignKey("alert_receivers.name", ondelete="CASCADE"), primary_key=True)
    state: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=NOW)


class WatchedHour(Base):
    """The mean age of the oldest pending task of a capability in an hour: `seconds` is the sum over `samples`.

    The row with empty names says that an orchestrator watched in that hour at all.
    """

    __tablename__ = "watched_hours"

    bucket: Mapped[datetime] = mapped_column(primary_key=True)
    namespace: Mapped[str] = mapped_column(primary_key=True, server_default="")
    capability: Mapped[str] = mapped_column(primary_key=True, server_default="")
    samples: Mapped[int] = mapped_column(BigInteger, server_default="0")
    seconds: Mapped[float] = mapped_column(Double, server_default="0")
