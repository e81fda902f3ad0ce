"""The memory of models: see `shared.memories`."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from shared.database.tables.base import Base, created, namespace_column, new_id


class MemoryStore(Base):
    """The files that the tasks of a conversation, a tenant or an agent share.

    `tool` is the name of the memory tool: agents with the same tool share its stores. `changes` numbers its changes.
    """

    __tablename__ = "memory_stores"
    __table_args__ = (
        CheckConstraint("per IN ('conversation', 'tenant', 'agent')", name="per"),
        UniqueConstraint(
            "namespace",
            "tool",
            "per",
            "owner",
            "key",
            name="memory_stores_owner_key",
            postgresql_nulls_not_distinct=True,
        ),
        Index("memory_stores_key_idx", "namespace", "key"),
        Index("memory_stores_used_idx", "used_at"),
    )

    id: Mapped[UUID] = new_id()
    namespace: Mapped[str] = namespace_column()
    tool: Mapped[str]
    per: Mapped[str]
    owner: Mapped[str]
    key: Mapped[str | None]
    changes: Mapped[int] = mapped_column(server_default=text("0"))
    created_at: Mapped[datetime] = created()
    used_at: Mapped[datetime] = created()


class MemoryChange(Base):
    """A change of a store. That of an operator has no task. A task may be deleted before its memory."""

    __tablename__ = "memory_changes"
    __table_args__ = (UniqueConstraint("store_id", "idempotency_key", name="memory_changes_once_key"),)

    store_id: Mapped[UUID] = mapped_column(ForeignKey("memory_stores.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    command: Mapped[str]
    path: Mapped[str]
    new_path: Mapped[str | None]
    made_by: Mapped[str]
    task_id: Mapped[UUID | None]
    step: Mapped[int | None]
    idempotency_key: Mapped[str | None]
    result: Mapped[str]
    at: Mapped[datetime] = created()


class MemoryVersion(Base):
    """A file as a change left it; without a content, it was deleted or moved."""

    __tablename__ = "memory_versions"
    __table_args__ = (
        ForeignKeyConstraint(
            ["store_id", "number"], ["memory_changes.store_id", "memory_changes.number"], ondelete="CASCADE"
        ),
    )

    store_id: Mapped[UUID] = mapped_column(primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    content: Mapped[str | None]
    bytes: Mapped[int]
