"""What workers let functions import. Runs before the new release starts; workers of 0.2 leave it NULL."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None
PHASE = "before"


def upgrade() -> None:
    op.add_column("workers", sa.Column("packages", postgresql.ARRAY(sa.Text()), nullable=True))


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or go on with this release.")
