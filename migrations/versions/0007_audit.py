"""The audit log. Runs before 0.3 starts: release 0.2 neither reads nor writes it."""

from __future__ import annotations

from alembic import op

from migrations.sql import run_file

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None
PHASE = "before"


def upgrade() -> None:
    run_file(op.get_bind(), "0007_audit.sql")


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or continue with this release.")
