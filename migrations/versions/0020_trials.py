"""Recordings that trials run against. Runs before 0.3 starts: 0.2 hands their tasks back."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None
PHASE = "before"


def upgrade() -> None:
    """Create the table, and let tasks of the formats after 2 hold files too."""
    op.create_table(
        "trials",
        sa.Column("task_id", sa.UUID(), nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("allow_idempotent", sa.Boolean(), nullable=False),
        sa.Column("recording", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("task_id", name="trials_pkey"),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="trials_task_id_fkey", ondelete="CASCADE"),
        sa.CheckConstraint("level IN ('replay', 'shadow')", name="level"),
    )
    op.execute("DROP TRIGGER tasks_files ON tasks")
    op.execute(
        "CREATE TRIGGER tasks_files AFTER INSERT ON tasks FOR EACH ROW WHEN (NEW.journal_format >= 2) "
        "EXECUTE FUNCTION minion_hold_files_of_task()"
    )


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or continue with this release.")
