"""Acts on many tasks that run in the background, and saved views of the list of tasks.

Only the orchestrator's `orchestrator.bulk` and the pages write them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Double, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from shared.database.tables.base import NOW, Base, created, new_id

ZERO = "0"


class BulkAct(Base):
    """An act on all tasks that match a query, and its progress.

    Attributes:
        chosen: the filter that the query meant when the act was started, with the bounds of its maker.
        options: of the act: the reason of a cancellation, how to replay, the labels.
        rate: tasks a second.
        matched: the tasks that the dry run found; `more`: it counted no further.
        failures: the first tasks that were refused, and why.
        cursor: the last task that it has dealt with.
        next_at: when the next task is due.
        maker: the key that started it, as the records of its acts need it.
    """

    __tablename__ = "bulk_acts"
    __table_args__ = (
        CheckConstraint("act IN ('cancel', 'replay', 'label')", name="act"),
        CheckConstraint("state IN ('running', 'stopped', 'done')", name="state"),
        CheckConstraint("(state = 'running') = (ended_at IS NULL)", name="ended"),
        CheckConstraint("(state = 'stopped') = (stopped_by IS NOT NULL)", name="stopped"),
        CheckConstraint("rate > 0", name="rate"),
        Index("bulk_acts_running_idx", "id", postgresql_where=text("state = 'running'")),
        Index("bulk_acts_namespace_idx", "namespace", "id"),
    )

    id: Mapped[UUID] = new_id()
    namespace: Mapped[str]
    act: Mapped[str]
    query: Mapped[str]
    chosen: Mapped[dict[str, Any]]
    options: Mapped[dict[str, Any]]
    rate: Mapped[float] = mapped_column(Double)
    state: Mapped[str] = mapped_column(server_default="running")
    matched: Mapped[int] = mapped_column(BigInteger)
    more: Mapped[bool]
    done: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    failed: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    skipped: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    failures: Mapped[dict[str, Any]] = mapped_column(server_default=text("'[]'::jsonb"))
    cursor: Mapped[UUID | None]
    next_at: Mapped[datetime] = mapped_column(server_default=NOW)
    key_id: Mapped[UUID | None]
    maker: Mapped[dict[str, Any]]
    created_by: Mapped[str]
    created_at: Mapped[datetime] = created()
    ended_at: Mapped[datetime | None]
    stopped_by: Mapped[str | None]


class SavedView(Base):
    """A named query of the list of tasks, for its owner, or without one, for all readers of the namespace.

    `owner` and `maker` are identities of keys.
    """

    __tablename__ = "saved_views"
    __table_args__ = (CheckConstraint("name <> ''", name="name"),)

    id: Mapped[UUID] = new_id()
    namespace: Mapped[str]
    owner: Mapped[str | None]
    name: Mapped[str]
    query: Mapped[str]
    maker: Mapped[str]
    created_at: Mapped[datetime] = created()
    created_by: Mapped[str]


Index(
    "saved_views_name_idx",
    SavedView.namespace,
    func.coalesce(SavedView.owner, text("''")),
    SavedView.name,
    unique=True,
)
