"""API keys, and the bounds of roles that submit by SQL."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, Index, LargeBinary, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import Text

from shared.database.tables.base import Base, created, new_id


class ApiKey(Base):
    """An API key: its SHA-256, its role and the bounds of its scope. A revoked key stays, for the record.

    After a rotation, the previous key is valid until `previous_until`.
    """

    __tablename__ = "api_keys"
    __table_args__ = (
        CheckConstraint("role IN ('viewer', 'submitter', 'operator', 'approver', 'author', 'admin')", name="role"),
        CheckConstraint("octet_length(hash) = 32 AND octet_length(previous_hash) = 32", name="hash"),
        CheckConstraint("requests_per_minute > 0", name="requests_per_minute"),
        CheckConstraint("num_nulls(previous_hash, previous_prefix, previous_until) IN (0, 3)", name="previous"),
        Index("api_keys_hash_idx", "hash", unique=True),
        Index(
            "api_keys_previous_hash_idx",
            "previous_hash",
            unique=True,
            postgresql_where=text("previous_hash IS NOT NULL"),
        ),
        Index(
            "api_keys_name_idx",
            text("COALESCE(namespace, '')"),
            "name",
            unique=True,
            postgresql_where=text("revoked_at IS NULL"),
        ),
    )

    id: Mapped[UUID] = new_id()
    name: Mapped[str]
    prefix: Mapped[str]
    hash: Mapped[bytes] = mapped_column(LargeBinary)
    role: Mapped[str]
    payloads: Mapped[bool]
    namespace: Mapped[str | None]
    agents: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'::text[]"))
    capabilities: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'::text[]"))
    tenant: Mapped[str | None]
    created_at: Mapped[datetime] = created()
    created_by: Mapped[str]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    rotated_at: Mapped[datetime | None]
    rotated_by: Mapped[str | None]
    previous_hash: Mapped[bytes | None] = mapped_column(LargeBinary)
    previous_prefix: Mapped[str | None]
    previous_until: Mapped[datetime | None]
    previous_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    revoked_by: Mapped[str | None]
    requests_per_minute: Mapped[int | None]


class SqlSubmitter(Base):
    """The bounds of a database role that submits tasks by SQL."""

    __tablename__ = "sql_submitters"

    role: Mapped[str] = mapped_column(primary_key=True)
    namespace: Mapped[str]
    agents: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'::text[]"))
    tenant: Mapped[str | None]
    created_at: Mapped[datetime] = created()
