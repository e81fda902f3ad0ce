"""Drop everything that only release 0.1 needed. Runs when none of its processes is left."""

from __future__ import annotations

from alembic import op

from shared.tasks.sql import recreate

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None
PHASE = "after"
FIRST_RELEASE = "0.2"  # workers of earlier releases cannot run on this schema


def upgrade() -> None:
    # What 0.1 called: with other parameters since, and beside the new ones until now.
    recreate(op.get_bind(), "minion_claim(uuid,integer,uuid)", "claim")
    recreate(op.get_bind(), "minion_suspend(uuid,integer,jsonb,jsonb)", "waits")
    op.drop_index("task_status_pending_idx", "task_status")


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or go on with this release.")
