"""API keys, logins of browsers, and the bounds of roles that submit by SQL."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, Interval, LargeBinary, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import Text

from shared.database.tables.base import NOW, Base, created, new_id


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


class LoginSession(Base):
    """A login of a browser: the SHA-256 of its cookie, and the key that opened it or the rights that it has.

    Attributes:
        hash: of a login with the administrator's key, a hash of that key and the SHA-256.
        kind: `administrator`, `key` or `oidc`.
        key_hash: the text of the key that opened it; the login ends with it.
        subject: the identity provider's own id of the user.
        idle: the time without use after which it ends.
        ended_at: when the user logged out, or the login was revoked.
    """

    __tablename__ = "login_sessions"
    __table_args__ = (
        CheckConstraint("kind IN ('administrator', 'key', 'oidc')", name="kind"),
        CheckConstraint("octet_length(hash) = 32 AND octet_length(key_hash) = 32", name="hash"),
        CheckConstraint("num_nonnulls(key_id, key_hash) = CASE kind WHEN 'key' THEN 2 ELSE 0 END", name="key"),
        CheckConstraint(
            "num_nonnulls(subject, role, payloads) = CASE kind WHEN 'oidc' THEN 3 ELSE 0 END", name="rights"
        ),
        CheckConstraint("role IN ('viewer', 'submitter', 'operator', 'approver', 'author', 'admin')", name="role"),
        Index("login_sessions_hash_idx", "hash", unique=True),
        Index("login_sessions_user_name_idx", "user_name"),
        Index("login_sessions_expires_at_idx", "expires_at"),
    )

    id: Mapped[UUID] = new_id()
    hash: Mapped[bytes] = mapped_column(LargeBinary)
    kind: Mapped[str]
    user_name: Mapped[str]
    key_id: Mapped[UUID | None] = mapped_column(ForeignKey("api_keys.id", ondelete="CASCADE"))
    key_hash: Mapped[bytes | None] = mapped_column(LargeBinary)
    subject: Mapped[str | None]
    role: Mapped[str | None]
    payloads: Mapped[bool | None]
    namespace: Mapped[str | None]
    tenant: Mapped[str | None]
    created_at: Mapped[datetime] = created()
    expires_at: Mapped[datetime]
    idle: Mapped[timedelta] = mapped_column(Interval)
    last_used_at: Mapped[datetime] = mapped_column(server_default=NOW)
    address: Mapped[str | None]
    user_agent: Mapped[str | None]
    ended_at: Mapped[datetime | None]
    ended_by: Mapped[str | None]
