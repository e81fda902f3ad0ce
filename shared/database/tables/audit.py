"""The audit log, and the addresses from which keys are used."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Identity, Index, LargeBinary, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.orm import Mapped, mapped_column

from shared.database.tables.base import NOW, Base


class AuditRow(Base):
    """An act, or refused access. Triggers refuse every change but the one that gives the row its place in the chain.

    `before` and `after` keep their exact text, which the signature covers.
    """

    __tablename__ = "audit_log"
    __table_args__ = (
        UniqueConstraint("nonce"),
        UniqueConstraint("position"),
        CheckConstraint("num_nulls(position, hash) IN (0, 2)", name="place"),
        CheckConstraint("octet_length(hash) = 32 AND octet_length(signature) = 32", name="hash"),
        Index("audit_log_unsealed_idx", "id", postgresql_where=text("position IS NULL")),
        Index("audit_log_act_idx", "act", "at"),
        Index("audit_log_namespace_idx", "namespace", "id"),
        Index("audit_log_target_idx", "target", "id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    nonce: Mapped[UUID]
    at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))
    act: Mapped[str]
    actor: Mapped[str]
    key_prefix: Mapped[str | None]
    claimed: Mapped[str | None]
    address: Mapped[str | None]
    request_id: Mapped[str | None]
    namespace: Mapped[str | None]
    target: Mapped[str | None]
    before: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    after: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    signature: Mapped[bytes | None] = mapped_column(LargeBinary)
    position: Mapped[int | None] = mapped_column(BigInteger)
    hash: Mapped[bytes | None] = mapped_column(LargeBinary)


class AuditEnd(Base):
    """An end of the chain: `head`, its last row, or `start`, a signed checkpoint in place of rows that were deleted."""

    __tablename__ = "audit_ends"
    __table_args__ = (CheckConstraint("name IN ('start', 'head')", name="name"),)

    name: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[bytes] = mapped_column(LargeBinary)
    signature: Mapped[bytes] = mapped_column(LargeBinary)
    at: Mapped[datetime] = mapped_column(server_default=NOW)


class KeyAddress(Base):
    """An address from which a key was used lately."""

    __tablename__ = "key_addresses"

    key: Mapped[str] = mapped_column(primary_key=True)
    address: Mapped[str] = mapped_column(primary_key=True)
    last_seen: Mapped[datetime] = mapped_column(server_default=NOW)
