"""What conversations are shortened to."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, ForeignKeyConstraint
from sqlalchemy.orm import Mapped, mapped_column

from shared.models.base import Base, created


class ConversationSummary(Base):
    """A conversation up to and including the message `through`, in few words: where the next task begins to read.

    Written by a trigger, with the step of the task that made it.
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
