"""The program that made a step, and its line; security events of programs, which have no function version.

Runs before 0.3 starts: 0.2 hands tasks with programs back.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None
PHASE = "before"


def upgrade() -> None:
    """Add the columns, and permit the events."""
    op.add_column("steps", sa.Column("program", sa.Integer()))
    op.add_column("steps", sa.Column("line", sa.Integer()))
    op.alter_column("security_events", "function_version_id", nullable=True)


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or continue with this release.")
