"""Calls that an MCP server finishes later. Runs before 0.3 starts: 0.2 has no such calls."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None
PHASE = "before"

MOMENT = sa.DateTime(timezone=True)
NOW = sa.text("now()")
JSON = postgresql.JSONB(none_as_null=True, astext_type=sa.Text())
STATES = "'working', 'input_required', 'answered', 'sent', 'done', 'cancelling'"
POLLED = sa.text("remote_id IS NOT NULL AND state IN ('working', 'input_required', 'cancelling')")


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "remote_calls",
        sa.Column("task_id", sa.UUID(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("server", sa.Text(), nullable=False),
        sa.Column("server_version_id", sa.UUID(), nullable=False),
        sa.Column("remote_id", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("requests", sa.Text(), nullable=True),
        sa.Column("form", sa.Text(), nullable=True),
        sa.Column("proposed", JSON, nullable=True),
        sa.Column("request_state", sa.Text(), nullable=True),
        sa.Column("answer", JSON, nullable=True),
        sa.Column("answered", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("round", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("poll_seconds", sa.Double(), nullable=False),
        sa.Column("due_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("expires_at", MOMENT, nullable=True),
        sa.Column("polled_at", MOMENT, nullable=True),
        sa.Column("failures", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("failing_since", MOMENT, nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("changed_at", MOMENT, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("task_id", "step", name="remote_calls_pkey"),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="remote_calls_task_id_fkey", ondelete="CASCADE"),
        sa.CheckConstraint(f"state IN ({STATES})", name="state"),
        sa.CheckConstraint("(state = 'done') = (result IS NOT NULL)", name="result"),
        sa.CheckConstraint("remote_id IS NOT NULL OR state IN ('input_required', 'answered', 'sent')", name="polled"),
    )
    op.create_index("remote_calls_due_idx", "remote_calls", ["due_at"], postgresql_where=POLLED)
    op.create_index(
        "remote_calls_server_idx", "remote_calls", ["namespace", "server", "due_at"], postgresql_where=POLLED
    )


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or continue with this release.")
