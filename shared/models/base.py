"""What all tables share."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import DateTime, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql import UUID as PgUUID
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shared.states import FINAL, State

STATES = ", ".join(f"'{state}'" for state in State)
FINAL_STATES = ", ".join(f"'{state}'" for state in sorted(FINAL))
NOW = text("now()")
NEW_ID = text("minion_uuidv7()")
EMPTY_OBJECT = text("'{}'::jsonb")


class Base(DeclarativeBase):
    """All tables, with names for every constraint so that migrations can speak of them."""

    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it as declared here
        UUID: PgUUID(as_uuid=True),
        datetime: DateTime(timezone=True),
        str: Text,
        dict[str, Any]: JSONB(none_as_null=True),
        list[str]: ARRAY(Text),
    }


Base.metadata.naming_convention = {
    "pk": "%(table_name)s_pkey",
    "ix": "%(table_name)s_%(column_0_name)s_idx",
    "uq": "%(table_name)s_%(column_0_N_name)s_key",
    "fk": "%(table_name)s_%(column_0_name)s_fkey",
    "ck": "%(table_name)s_%(constraint_name)s_check",
}


def new_id() -> Mapped[UUID]:
    """A primary key that the database makes: UUIDv7."""
    return mapped_column(primary_key=True, server_default=NEW_ID)


def created() -> Mapped[datetime]:
    """The time of the insert."""
    return mapped_column(server_default=NOW)


def key_order_column() -> Mapped[dict[str, Any] | None]:
    """The order of the keys in the value beside it: see `shared.key_order`. NULL: that of `jsonb`."""
    return mapped_column()


def namespace_column() -> Mapped[str]:
    """The namespace; there is one by default."""
    return mapped_column(server_default="default")
