"""Budgets of tasks, and the amounts that their steps have reserved. Money is integer micro-dollars."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Integer, text
from sqlalchemy.orm import Mapped, mapped_column

from shared.database.tables.base import NOW, Base, created


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
