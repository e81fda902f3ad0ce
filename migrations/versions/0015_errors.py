"""States of kinds of errors, and memory of workers. Runs before 0.3 starts: 0.2 reads none of it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None
PHASE = "before"

# `shared.database.schema` adds the column and builds the index beforehand, while others use the tables.
COLUMNS = {"workers": "memory_bytes bigint"}
INDEXES = {"task_outcomes_error_idx": "task_outcomes (error_fingerprint, finished_at) WHERE state = 'failed'"}


def upgrade() -> None:
    """Create the table and the index, which replaces the one on fingerprints alone."""
    for table, column in COLUMNS.items():
        op.execute(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {column}")
    for name, definition in INDEXES.items():
        op.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {definition}")
    op.execute("DROP INDEX IF EXISTS task_outcomes_fingerprint_idx")
    op.create_table(
        "error_states",
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("changed_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "fingerprint", name="error_states_pkey"),
        sa.CheckConstraint("state IN ('resolved', 'ignored')", name="state"),
    )


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or continue with this release.")
