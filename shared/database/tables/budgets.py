"""Budgets of tasks, standing budgets, and the amounts that steps have reserved. Money is integer micro-dollars."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    SmallInteger,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from shared.database.tables.base import NOW, Base, created, new_id


class Budget(Base):
    """Limits of a task and everything below it, and the amounts used so far.

    `spent_…` includes amounts that steps have reserved and not used yet. `due_at`: when the budget of seconds ends.
    """

    __tablename__ = "budgets"
    __table_args__ = (
        CheckConstraint("on_breach IN ('ask', 'fail')", name="on_breach"),
        CheckConstraint(
            "num_nonnulls(tokens, microdollars, steps, seconds) > 0 "
            "AND COALESCE(tokens > 0, true) AND COALESCE(microdollars > 0, true) "
            "AND COALESCE(steps > 0, true) AND COALESCE(seconds > 0, true)",
            name="limits",
        ),
        CheckConstraint("spent_tokens >= 0 AND spent_microdollars >= 0 AND spent_steps >= 0", name="spent"),
        Index("budgets_due_idx", "due_at", postgresql_where=text("due_at IS NOT NULL AND on_breach = 'fail'")),
    )

    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    tokens: Mapped[int | None] = mapped_column(BigInteger)
    microdollars: Mapped[int | None] = mapped_column(BigInteger)
    steps: Mapped[int | None] = mapped_column(BigInteger)
    seconds: Mapped[float | None]
    on_breach: Mapped[str]
    spent_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    spent_microdollars: Mapped[int] = mapped_column(BigInteger, server_default="0")
    spent_steps: Mapped[int] = mapped_column(BigInteger, server_default="0")
    due_at: Mapped[datetime | None]
    changed_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Reservation(Base):
    """The amount that one step of one claim has charged to one budget: its worst case, and its use once settled."""

    __tablename__ = "reservations"
    __table_args__ = (Index("reservations_budget_idx", "budget_task_id", "settled_at"),)

    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    claim: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    budget_task_id: Mapped[UUID] = mapped_column(ForeignKey("budgets.task_id", ondelete="CASCADE"), primary_key=True)
    tokens: Mapped[int] = mapped_column(BigInteger)
    microdollars: Mapped[int] = mapped_column(BigInteger)
    steps: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime] = created()
    settled_at: Mapped[datetime | None]


class StandingBudget(Base):
    """Limits on what models use in each hour, day or month. A column that the scope does not need is empty."""

    __tablename__ = "standing_budgets"
    __table_args__ = (
        UniqueConstraint("scope", "namespace", "name", "period"),
        CheckConstraint("scope IN ('installation', 'namespace', 'agent', 'key', 'model')", name="scope"),
        CheckConstraint(
            "(namespace = '') = (scope = 'installation') AND (name = '') = (scope IN ('installation', 'namespace'))",
            name="names",
        ),
        CheckConstraint("period IN ('hour', 'day', 'month')", name="period"),
        CheckConstraint("on_breach IN ('wait', 'fail', 'alert')", name="on_breach"),
        CheckConstraint(
            "num_nonnulls(tokens, microdollars) > 0 AND COALESCE(tokens > 0, true) "
            "AND COALESCE(microdollars > 0, true)",
            name="limits",
        ),
    )

    id: Mapped[UUID] = new_id()
    scope: Mapped[str]
    namespace: Mapped[str] = mapped_column(server_default="")
    name: Mapped[str] = mapped_column(server_default="")
    period: Mapped[str]
    timezone: Mapped[str]
    tokens: Mapped[int | None] = mapped_column(BigInteger)
    microdollars: Mapped[int | None] = mapped_column(BigInteger)
    on_breach: Mapped[str]
    created_at: Mapped[datetime] = created()
    created_by: Mapped[str | None]


class StandingUsage(Base):
    """The use of a standing budget in one period. `reserved_…`: what running calls may use."""

    __tablename__ = "standing_usage"
    __table_args__ = (
        CheckConstraint(
            "spent_tokens >= 0 AND spent_microdollars >= 0 AND reserved_tokens >= 0 AND reserved_microdollars >= 0",
            name="amounts",
        ),
    )

    budget_id: Mapped[UUID] = mapped_column(ForeignKey("standing_budgets.id", ondelete="CASCADE"), primary_key=True)
    period_start: Mapped[datetime] = mapped_column(primary_key=True)
    period_end: Mapped[datetime]
    spent_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    spent_microdollars: Mapped[int] = mapped_column(BigInteger, server_default="0")
    reserved_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    reserved_microdollars: Mapped[int] = mapped_column(BigInteger, server_default="0")


class StandingReservation(Base):
    """The amount that one step of one claim has reserved in one period of a standing budget, until it is settled."""

    __tablename__ = "standing_reservations"
    __table_args__ = (
        ForeignKeyConstraint(
            ["budget_id", "period_start"],
            ["standing_usage.budget_id", "standing_usage.period_start"],
            name="standing_reservations_usage_fkey",
            ondelete="CASCADE",
        ),
        Index("standing_reservations_usage_idx", "budget_id", "period_start"),
    )

    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    claim: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    budget_id: Mapped[UUID] = mapped_column(primary_key=True)
    period_start: Mapped[datetime]
    tokens: Mapped[int] = mapped_column(BigInteger)
    microdollars: Mapped[int] = mapped_column(BigInteger)


class StandingAlert(Base):
    """A share of a standing budget, in percent, that was used up in a period, and when an orchestrator logged it."""

    __tablename__ = "standing_alerts"
    __table_args__ = (
        ForeignKeyConstraint(
            ["budget_id", "period_start"],
            ["standing_usage.budget_id", "standing_usage.period_start"],
            name="standing_alerts_usage_fkey",
            ondelete="CASCADE",
        ),
        Index("standing_alerts_unlogged_idx", "created_at", postgresql_where=text("logged_at IS NULL")),
    )

    budget_id: Mapped[UUID] = mapped_column(primary_key=True)
    period_start: Mapped[datetime] = mapped_column(primary_key=True)
    percent: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    created_at: Mapped[datetime] = created()
    logged_at: Mapped[datetime | None]
