"""An index of the audit log by the changed object: without it, its acts are looked for in all rows. Runs before 0.3
starts."""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None
PHASE = "before"

# `shared.database.schema` builds it beforehand, while others use the table.
INDEXES = {"audit_log_target_idx": "audit_log (target, id)"}


def upgrade() -> None:
    """Create the index, if it was not built beforehand."""
    for name, definition in INDEXES.items():
        op.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {definition}")


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or continue with this release.")
