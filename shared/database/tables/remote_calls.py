"""Calls that an MCP server finishes later: see `shared/tasks/sql/remote_calls.sql`."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, Double, ForeignKey, Index, SmallInteger, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TEXT
from sqlalchemy.orm import Mapped, mapped_column

from shared.database.tables.base import NOW, Base, created

POLLED = text("remote_id IS NOT NULL AND state IN ('working', 'input_required', 'cancelling')")


class RemoteCall(Base):
    """A tool call that its server finishes later, until its task makes another such call, or ends.

    `namespace`: that of the server's definition.

    `remote_id`: the server's id of its task; NULL: a plain call, which is repeated with a person's answers.

    `requests`: the questions as the server sent them, `form`: the same for a person, `proposed`: its defaults. These,
    `request_state` and `result` are JSON texts, because `jsonb` keeps neither the order of keys nor all characters.

    `answer`: {verdict, value, decision} of a person, which the server does not have yet. `answered`: keys of questions
    that it has answers to. `round`: how often it has asked. `due_at`: when it is polled next. `expires_at`: when it may
    forget its task. `failing_since`, `failures`, `error`: polls in a row that failed.
    """

    __tablename__ = "remote_calls"
    __table_args__ = (
        CheckConstraint(
            "state IN ('working', 'input_required', 'answered', 'sent', 'done', 'cancelling')", name="state"
        ),
        CheckConstraint("(state = 'done') = (result IS NOT NULL)", name="result"),
        CheckConstraint("remote_id IS NOT NULL OR state IN ('input_required', 'answered', 'sent')", name="polled"),
        Index("remote_calls_due_idx", "due_at", postgresql_where=POLLED),
        Index("remote_calls_server_idx", "namespace", "server", "due_at", postgresql_where=POLLED),
    )

    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    namespace: Mapped[str]
    server: Mapped[str]
    server_version_id: Mapped[UUID]
    remote_id: Mapped[str | None]
    state: Mapped[str]
    message: Mapped[str | None]
    requests: Mapped[str | None]
    form: Mapped[str | None]
    proposed: Mapped[Any | None] = mapped_column(JSONB(none_as_null=True))
    request_state: Mapped[str | None]
    answer: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    answered: Mapped[list[str]] = mapped_column(ARRAY(TEXT), server_default=text("'{}'"))
    round: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    result: Mapped[str | None]
    poll_seconds: Mapped[float] = mapped_column(Double)
    due_at: Mapped[datetime] = mapped_column(server_default=NOW)
    expires_at: Mapped[datetime | None]
    polled_at: Mapped[datetime | None]
    failures: Mapped[int] = mapped_column(server_default="0")
    failing_since: Mapped[datetime | None]
    error: Mapped[str | None]
    created_at: Mapped[datetime] = created()
    changed_at: Mapped[datetime] = created()
