"""Files: images, PDF and texts that tasks refer to."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, ForeignKeyConstraint, Identity, Index, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from shared.database.tables.base import NOW, Base


class File(Base):
    """A file, stored once per namespace and owner: the id is a digest of both and of the content.

    `number`: order of the uploads. `owner`: the bounds of the keys that share it, if they are less than the namespace.
    `uploaded_at`: of the latest upload of the same content.
    """

    __tablename__ = "files"
    __table_args__ = (
        Index("files_number_idx", "namespace", "number"),
        Index("files_uploaded_at_idx", "uploaded_at"),
    )

    namespace: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, Identity())
    name: Mapped[str | None]
    media_type: Mapped[str]
    bytes: Mapped[int]
    sha256: Mapped[str]
    width: Mapped[int | None]
    height: Mapped[int | None]
    pages: Mapped[int | None]
    owner: Mapped[str | None]
    uploaded_by: Mapped[str]
    uploaded_at: Mapped[datetime] = mapped_column(server_default=NOW)
    data: Mapped[Any] = mapped_column(LargeBinary)


class TaskFile(Base):
    """A task that refers to a file: in its input, its messages, or in what its tools returned. Written by a trigger."""

    __tablename__ = "task_files"
    __table_args__ = (
        ForeignKeyConstraint(["namespace", "file_id"], ["files.namespace", "files.id"], name="task_files_file_fkey"),
        Index("task_files_file_idx", "namespace", "file_id"),
    )

    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    namespace: Mapped[str] = mapped_column(primary_key=True)
    file_id: Mapped[str] = mapped_column(primary_key=True)


class ConversationFile(Base):
    """A conversation that refers to a file in its messages. Written by a trigger."""

    __tablename__ = "conversation_files"
    __table_args__ = (
        ForeignKeyConstraint(
            ["namespace", "conversation_id"],
            ["conversations.namespace", "conversations.id"],
            ondelete="CASCADE",
            name="conversation_files_conversation_fkey",
        ),
        ForeignKeyConstraint(
            ["namespace", "file_id"], ["files.namespace", "files.id"], name="conversation_files_file_fkey"
        ),
        Index("conversation_files_file_idx", "namespace", "file_id"),
    )

    namespace: Mapped[str] = mapped_column(primary_key=True)
    conversation_id: Mapped[str] = mapped_column(primary_key=True)
    file_id: Mapped[str] = mapped_column(primary_key=True)
