"""An index of the tasks that wait for a person: all other waiting tasks may be many. Runs before 0.3 starts."""

from __future__ import annotations

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None
PHASE = "before"

# `shared.database.schema` builds it beforehand, while others use the table.
INDEXES = {
    "task_status_people_idx": "task_status (task_id) WHERE state = 'waiting' AND wait_reason IN ('approval', 'answer')"
}


def upgrade() -> None:
    """Create the index, if it was not built beforehand."""
    for name, definition in INDEXES.items():
        op.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {definition}")


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or continue with this release.")
