"""What release 0.3 adds to the tables. Runs before it starts: release 0.2 still works on this schema."""

from __future__ import annotations

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None
PHASE = "before"


def upgrade() -> None:
    pass


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or continue with this release.")
