"""Events, budgets, replays from a step and model limits. Runs before the new release starts, like 0002."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations.sql import run_file

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None
PHASE = "before"


def upgrade() -> None:
    connection = op.get_bind()
    run_file(connection, "0003_events.sql")
    run_file(connection, "0003_budgets.sql")
    add_replays_from_a_step()
    create_conversation_summaries()
    run_file(connection, "0003_summaries.sql")
    run_file(connection, "0003_limits.sql")


def add_replays_from_a_step() -> None:
    """Add columns without rewriting the table."""
    op.add_column("tasks", sa.Column("from_step", sa.Integer(), nullable=True))
    op.add_column("tasks", sa.Column("history_before", sa.DateTime(timezone=True), nullable=True))
    op.add_column("steps", sa.Column("copied_from", sa.UUID(), nullable=True))


def create_conversation_summaries() -> None:
    op.create_table(
        "conversation_summaries",
        sa.Column("namespace", sa.Text(), server_default="default", nullable=False),
        sa.Column("conversation_id", sa.Text(), nullable=False),
        sa.Column("through", sa.UUID(), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("task_id", sa.UUID(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace", "conversation_id"],
            ["conversations.namespace", "conversations.id"],
            name="conversation_summaries_conversation_fkey",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["task_id"], ["tasks.id"], name="conversation_summaries_task_id_fkey", ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("namespace", "conversation_id", "through", name="conversation_summaries_pkey"),
    )
    op.create_index("conversation_summaries_task_id_idx", "conversation_summaries", ["task_id"])


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or go on with this release.")
