"""Summaries of conversations."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, ForeignKeyConstraint
from sqlalchemy.orm import Mapped, mapped_column

from shared.database.tables.base import Base, created


class ConversationSummary(Base):
    """A summary of a conversation up to and including the message `through`; the next task reads on from there.

    Written by a trigger, with the step of the task that produced it.
    """

    __tablename__ = "conversation_summaries"
    __table_args__ = (
        ForeignKeyConstraint(
            ["namespace", "conversation_id"],
            ["conversations.namespace", "conversations.id"],
            ondelete="CASCADE",
            name="conversation_summaries_conversation_fkey",
        ),
    )

    namespace: Mapped[str] = mapped_column(primary_key=True, server_default="default")
    conversation_id: Mapped[str] = mapped_column(primary_key=True)
    through: Mapped[UUID] = mapped_column(primary_key=True)
    summary: Mapped[str]
    task_id: Mapped[UUID | None] = mapped_column(ForeignKey("tasks.id", ondelete="SET NULL"), index=True)
    created_at: Mapped[datetime] = created()
