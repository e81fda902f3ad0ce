"""The batch lane: Message Batches at the API, and the model calls that wait for them."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, SmallInteger, text
from sqlalchemy.orm import Mapped, mapped_column

from shared.database.tables.base import NOW, Base, created, new_id


class MessageBatch(Base):
    """One attempt to create a Message Batch, written before the request.

    `batch_id`: the API's id; NULL: the answer has not arrived yet, or was lost. `due_at`: when the API is asked about
    it next. `ended_at`: when all its calls had answers, or had been given back.
    """

    __tablename__ = "message_batches"
    __table_args__ = (Index("message_batches_open_idx", "due_at", postgresql_where=text("ended_at IS NULL")),)

    id: Mapped[UUID] = new_id()
    model: Mapped[str]
    batch_id: Mapped[str | None] = mapped_column(unique=True)
    calls: Mapped[int] = mapped_column(server_default="0")
    error: Mapped[str | None]
    created_at: Mapped[datetime] = created()
    submitted_at: Mapped[datetime | None]
    due_at: Mapped[datetime] = mapped_column(server_default=NOW)
    ended_at: Mapped[datetime | None]


class BatchCall(Base):
    """A model call of the batch lane, from the begin of its step until a minion has read the answer.

    `body` and `result` are JSON texts, because `jsonb` keeps neither the order of keys nor all characters. `claim`: the
    claim that began the step. `together`: the most calls with which it is sent, after a refusal of a larger batch.
    `due_at`: it is not sent before. `error`: why it was not answered the last time.
    """

    __tablename__ = "batch_calls"
    __table_args__ = (
        CheckConstraint("result IS NOT NULL OR body IS NOT NULL", name="body"),
        Index("batch_calls_unsent_idx", "created_at", postgresql_where=text("batch IS NULL AND result IS NULL")),
        Index("batch_calls_answered_idx", "task_id", postgresql_where=text("result IS NOT NULL")),
        Index("batch_calls_batch_idx", "batch", postgresql_where=text("batch IS NOT NULL")),
    )

    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    claim: Mapped[int]
    attempt: Mapped[int] = mapped_column(SmallInteger, server_default="1")
    custom_id: Mapped[str] = mapped_column(unique=True)
    model: Mapped[str]
    body: Mapped[str | None]
    bytes: Mapped[int]
    batch: Mapped[UUID | None] = mapped_column(ForeignKey("message_batches.id", ondelete="SET NULL"))
    together: Mapped[int | None]
    result: Mapped[str | None]
    usage: Mapped[dict[str, Any] | None]
    error: Mapped[str | None]
    created_at: Mapped[datetime] = created()
    due_at: Mapped[datetime] = mapped_column(server_default=NOW)
    answered_at: Mapped[datetime | None]
