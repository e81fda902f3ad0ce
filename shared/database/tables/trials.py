"""Trials: recordings that tasks are run against."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from shared.database.tables.base import Base, created


class Trial(Base):
    """The recording of a trial. The task is its root; those below it use the recording too.

    All of these tasks have the journal format 3: see `shared.tasks.trials`. `recording` is JSON text, because the
    order of keys in it matters.
    """

    __tablename__ = "trials"
    __table_args__ = (CheckConstraint("level IN ('replay', 'shadow')", name="level"),)

    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    level: Mapped[str]
    allow_idempotent: Mapped[bool]
    recording: Mapped[str]
    created_at: Mapped[datetime] = created()
