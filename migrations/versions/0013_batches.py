"""The batch lane: a task's lane, Message Batches and their calls. Runs before 0.3 starts: 0.2 reads none of it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None
PHASE = "before"

MOMENT = sa.DateTime(timezone=True)
NOW = sa.text("now()")


def upgrade() -> None:
    """Add the column and the tables."""
    op.execute("ALTER TABLE tasks ADD COLUMN IF NOT EXISTS lane text")
    op.create_table(
        "message_batches",
        sa.Column("id", sa.UUID(), server_default=sa.text("minion_uuidv7()"), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=True),
        sa.Column("calls", sa.Integer(), server_default="0", nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("submitted_at", MOMENT, nullable=True),
        sa.Column("due_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("ended_at", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("id", name="message_batches_pkey"),
        sa.UniqueConstraint("batch_id", name="message_batches_batch_id_key"),
    )
    op.create_index(
        "message_batches_open_idx", "message_batches", ["due_at"], postgresql_where=sa.text("ended_at IS NULL")
    )
    op.create_table(
        "batch_calls",
        sa.Column("task_id", sa.UUID(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("claim", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), server_default="1", nullable=False),
        sa.Column("custom_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=True),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("batch", sa.UUID(), nullable=True),
        sa.Column("together", sa.Integer(), nullable=True),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("usage", postgresql.JSONB(none_as_null=True), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("due_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("answered_at", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("task_id", "step", name="batch_calls_pkey"),
        sa.UniqueConstraint("custom_id", name="batch_calls_custom_id_key"),
        sa.CheckConstraint("result IS NOT NULL OR body IS NOT NULL", name="body"),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="batch_calls_task_id_fkey", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["batch"], ["message_batches.id"], name="batch_calls_batch_fkey", ondelete="SET NULL"),
    )
    op.create_index(
        "batch_calls_unsent_idx",
        "batch_calls",
        ["created_at"],
        postgresql_where=sa.text("batch IS NULL AND result IS NULL"),
    )
    op.create_index(
        "batch_calls_answered_idx", "batch_calls", ["task_id"], postgresql_where=sa.text("result IS NOT NULL")
    )
    op.create_index("batch_calls_batch_idx", "batch_calls", ["batch"], postgresql_where=sa.text("batch IS NOT NULL"))


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or continue with this release.")
