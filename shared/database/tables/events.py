"""Events of tasks, for clients that follow them. Written only by the triggers in `shared/tasks/sql/events.sql`."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from shared.database.tables.base import Base, created


class TaskEventRow(Base):
    """A change of a task's state or of one of its steps, numbered within the task, without gaps.

    `data` holds values that may change later; `orchestrator.task_events` adds the constant ones when it reads.
    """

    __tablename__ = "task_events"

    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    type: Mapped[str]
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = created()
