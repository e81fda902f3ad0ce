"""Results of pure calls that several tasks share."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, Index
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from shared.database.tables.base import Base, created, key_order_column, namespace_column


class CachedResult(Base):
    """The result of one pure call, for later calls with the same key: see `shared.tasks.cached_results`.

    It is deleted with the task that made the call. `bytes` is the size of the output as text.
    """

    __tablename__ = "cached_results"
    __table_args__ = (Index("cached_results_expires_idx", "expires_at", postgresql_include=["bytes"]),)

    key: Mapped[str] = mapped_column(primary_key=True)
    namespace: Mapped[str] = namespace_column()
    function_version_id: Mapped[UUID | None] = mapped_column(ForeignKey("function_versions.id"))
    output: Mapped[Any] = mapped_column(JSONB)
    output_order: Mapped[dict[str, Any] | None] = key_order_column()
    bytes: Mapped[int]
    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), index=True)
    step: Mapped[int]
    created_at: Mapped[datetime] = created()
    expires_at: Mapped[datetime]
