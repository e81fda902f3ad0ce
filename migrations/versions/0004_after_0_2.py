"""Drop everything that only release 0.1 needed. Runs when none of its processes is left."""

from __future__ import annotations

from alembic import op

from migrations.sql import run_file

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None
PHASE = "after"
FIRST_RELEASE = "0.2"  # workers of earlier releases cannot run on this schema


def upgrade() -> None:
    run_file(op.get_bind(), "0004_drop_what_0_1_called.sql")
    op.drop_index("task_status_pending_idx", "task_status")


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or go on with this release.")
