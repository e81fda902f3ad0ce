"""Operators' settings for running tasks: pauses, limits, schedules, webhooks, states of errors."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import Text

from shared.database.tables.base import (
    EMPTY_OBJECT,
    FINAL_STATES,
    NOW,
    Base,
    created,
    ended_in_column,
    ended_in_index,
    key_order_column,
    namespace_column,
    new_id,
)

SCOPES = "'capability', 'agent', 'key'"


class Pause(Base):
    """A pause: tasks of a capability, an agent or a tenant key do not start until an operator resumes it."""

    __tablename__ = "pauses"
    __table_args__ = (CheckConstraint(f"scope IN ({SCOPES})", name="scope"),)

    namespace: Mapped[str] = mapped_column(primary_key=True, server_default="default")
    scope: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    reason: Mapped[str | None]
    created_at: Mapped[datetime] = created()
    created_by: Mapped[str | None]


class ErrorState(Base):
    """What an operator decided about a kind of error: resolved until it is seen again, or ignored."""

    __tablename__ = "error_states"
    __table_args__ = (CheckConstraint("state IN ('resolved', 'ignored')", name="state"),)

    namespace: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    reason: Mapped[str | None]
    changed_at: Mapped[datetime] = mapped_column(server_default=NOW)
    changed_by: Mapped[str]


class Stop(Base):
    """A stop: no model call and no unsafe effect of the installation, a namespace, an agent or a tenant key begins.

    A column that the scope does not need is empty.
    """

    __tablename__ = "stops"
    __table_args__ = (
        CheckConstraint("scope IN ('installation', 'namespace', 'agent', 'key')", name="scope"),
        CheckConstraint(
            "(namespace = '') = (scope = 'installation') AND (name = '') = (scope IN ('installation', 'namespace'))",
            name="names",
        ),
    )

    scope: Mapped[str] = mapped_column(primary_key=True)
    namespace: Mapped[str] = mapped_column(primary_key=True, server_default="")
    name: Mapped[str] = mapped_column(primary_key=True, server_default="")
    reason: Mapped[str | None]
    created_at: Mapped[datetime] = created()
    created_by: Mapped[str | None]


class LimitRow(Base):
    """A limit on a capability, an agent or a tenant key (running tasks, or starts in a period), or on a model.

    A model's limits are requests and tokens in a period. The name `*` applies to each one without its own limit.
    """

    __tablename__ = "limits"
    __table_args__ = (
        CheckConstraint(f"scope IN ({SCOPES}, 'model')", name="scope"),
        CheckConstraint("max_running >= 0", name="max_running"),
        CheckConstraint("(rate IS NULL) = (period_seconds IS NULL) AND rate > 0 AND period_seconds > 0", name="rate"),
        CheckConstraint("num_nonnulls(max_running, rate, input_tokens, output_tokens) > 0", name="something"),
        CheckConstraint(
            "CASE scope WHEN 'model' THEN max_running IS NULL ELSE num_nonnulls(input_tokens, output_tokens) = 0 END",
            name="model",
        ),
        CheckConstraint(
            "(input_tokens IS NULL) = (input_tokens_seconds IS NULL) AND input_tokens > 0 AND input_tokens_seconds > 0",
            name="input_tokens",
        ),
        CheckConstraint(
            "(output_tokens IS NULL) = (output_tokens_seconds IS NULL) AND output_tokens > 0 "
            "AND output_tokens_seconds > 0",
            name="output_tokens",
        ),
    )

    namespace: Mapped[str] = mapped_column(primary_key=True, server_default="default")
    scope: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    max_running: Mapped[int | None]
    rate: Mapped[int | None]
    period_seconds: Mapped[float | None]
    created_at: Mapped[datetime] = created()
    created_by: Mapped[str | None]
    input_tokens: Mapped[int | None]
    input_tokens_seconds: Mapped[float | None]
    output_tokens: Mapped[int | None]
    output_tokens_seconds: Mapped[float | None]


class RateHold(Base):
    """No task of this scope starts before `until_at`, because its rate does not permit it."""

    __tablename__ = "rate_holds"
    __table_args__ = (CheckConstraint(f"scope IN ({SCOPES})", name="scope"),)

    namespace: Mapped[str] = mapped_column(primary_key=True, server_default="default")
    scope: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    until_at: Mapped[datetime]


class Schedule(Base):
    """A schedule that submits tasks repeatedly: by cron expression in a time zone, or by interval."""

    __tablename__ = "schedules"
    __table_args__ = (
        UniqueConstraint("namespace", "name"),
        CheckConstraint("(cron IS NULL) <> (interval_seconds IS NULL)", name="cron_or_interval"),
        CheckConstraint("interval_seconds > 0", name="interval"),
        CheckConstraint("missed IN ('skip', 'once', 'all')", name="missed"),
        Index("schedules_next_idx", "next_at", postgresql_where=text("enabled")),
    )

    id: Mapped[UUID] = new_id()
    namespace: Mapped[str] = namespace_column()
    name: Mapped[str]
    cron: Mapped[str | None]
    timezone: Mapped[str] = mapped_column(server_default="UTC")
    interval_seconds: Mapped[float | None]
    missed: Mapped[str] = mapped_column(server_default="once")
    request: Mapped[dict[str, Any]]
    request_order: Mapped[dict[str, Any] | None] = key_order_column()
    enabled: Mapped[bool] = mapped_column(server_default=text("true"))
    next_at: Mapped[datetime]
    last_at: Mapped[datetime | None]
    last_task_id: Mapped[UUID | None]
    last_error: Mapped[str | None]
    created_at: Mapped[datetime] = created()
    submitter_keys: Mapped[list[str] | None] = mapped_column(ARRAY(Text))


class Webhook(Base):
    """A receiver of messages about ended tasks, alerts, or both (`events`). Empty lists of filters mean all.

    After a rotation, messages are signed with both secrets for a while. `disabled_reason` says why it is not enabled.
    """

    __tablename__ = "webhooks"
    __table_args__ = (
        UniqueConstraint("namespace", "name"),
        CheckConstraint(
            "events <> '{}' AND events <@ ARRAY['tasks', 'alerts'] AND cardinality(events) <= 2", name="events"
        ),
    )

    id: Mapped[UUID] = new_id()
    namespace: Mapped[str] = namespace_column()
    name: Mapped[str]
    url: Mapped[str]
    secret: Mapped[str]
    previous_secret: Mapped[str | None]
    rotated_at: Mapped[datetime | None]
    states: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'::text[]"))
    agents: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'::text[]"))
    labels: Mapped[dict[str, Any]] = mapped_column(server_default=EMPTY_OBJECT)
    roots_only: Mapped[bool] = mapped_column(server_default=text("true"))
    enabled: Mapped[bool] = mapped_column(server_default=text("true"))
    disabled_reason: Mapped[str | None]
    created_at: Mapped[datetime] = created()
    events: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{tasks}'::text[]"))


class WebhookDelivery(Base):
    """A message due to a webhook. Written in the transaction that ends the task."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        UniqueConstraint("webhook_id", "task_id"),
        CheckConstraint(f"state IN ({FINAL_STATES})", name="state"),
        CheckConstraint("status IN ('pending', 'delivered', 'failed')", name="status"),
        Index("webhook_deliveries_next_idx", "webhook_id", "next_at", postgresql_where=text("status = 'pending'")),
        Index("webhook_deliveries_webhook_id_idx", "webhook_id", "id"),
        Index("webhook_deliveries_task_id_idx", "task_id"),
        ended_in_index("webhook_deliveries"),
    )

    id: Mapped[UUID] = new_id()
    webhook_id: Mapped[UUID] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"))
    state: Mapped[str]
    status: Mapped[str] = mapped_column(server_default="pending")
    attempts: Mapped[int] = mapped_column(server_default="0")
    next_at: Mapped[datetime] = mapped_column(server_default=NOW)
    last_status: Mapped[int | None]
    last_error: Mapped[str | None]
    finished_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = created()
    ended_in: Mapped[int | None] = ended_in_column()


class Secret(Base):
    """A secret for tools: encrypted with a key that is not in the database."""

    __tablename__ = "secrets"

    namespace: Mapped[str] = mapped_column(primary_key=True, server_default="default")
    name: Mapped[str] = mapped_column(primary_key=True)
    ciphertext: Mapped[str]
    created_at: Mapped[datetime] = created()
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Signal(Base):
    """A signal that was sent to a task by name; `step` is the wait that consumed it."""

    __tablename__ = "signals"
    __table_args__ = (Index("signals_task_idx", "task_id", "name", "id"),)

    id: Mapped[UUID] = new_id()
    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"))
    name: Mapped[str]
    payload: Mapped[Any | None] = mapped_column(JSONB)
    payload_order: Mapped[dict[str, Any] | None] = key_order_column()
    step: Mapped[int | None]
    created_at: Mapped[datetime] = created()


class UniqueTask(Base):
    """The task that holds a unique key: until it first starts (`pending`), or until it ends (`running`)."""

    __tablename__ = "unique_tasks"
    __table_args__ = (CheckConstraint("held_while IN ('pending', 'running')", name="held_while"),)

    namespace: Mapped[str] = mapped_column(primary_key=True, server_default="default")
    key: Mapped[str] = mapped_column(primary_key=True)
    task_id: Mapped[UUID] = mapped_column(
        ForeignKey("tasks.id", ondelete="CASCADE", deferrable=True, initially="DEFERRED"), index=True
    )
    held_while: Mapped[str]
