"""How far ended work was exported as traces. Runs before 0.3 starts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None
PHASE = "before"


def upgrade() -> None:
    """Create the table. It has no row until an orchestrator exports traces."""
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "tracing_state",
        sa.Column("id", sa.SmallInteger(), server_default="1", nullable=False),
        sa.Column("exported_below", sa.BigInteger(), nullable=False),
        sa.Column("exported_at", moment, server_default=sa.text("now()"), nullable=False),
        sa.Column("since", moment, nullable=True),
        sa.Column("cluster", sa.BigInteger(), nullable=True),
        sa.Column("seen_at", moment, server_default=sa.text("now()"), nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), server_default="0", nullable=False)
            for name in ("exported", "refused", "pruned")
        ),
        sa.PrimaryKeyConstraint("id", name="tracing_state_pkey"),
        sa.CheckConstraint("id = 1", name="one"),
    )


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or continue with this release.")
