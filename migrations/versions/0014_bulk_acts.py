"""Bulk acts, and saved views of the list of tasks. Runs before 0.3 starts: 0.2 reads none of it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0014"
down_revision = "0012"
branch_labels = None
depends_on = None
PHASE = "before"

MOMENT = sa.DateTime(timezone=True)
NOW = sa.text("now()")
JSONB = postgresql.JSONB(none_as_null=True)


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "bulk_acts",
        sa.Column("id", sa.UUID(), server_default=sa.text("minion_uuidv7()"), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("act", sa.Text(), nullable=False),
        sa.Column("query", sa.Text(), nullable=False),
        sa.Column("chosen", JSONB, nullable=False),
        sa.Column("options", JSONB, nullable=False),
        sa.Column("rate", sa.Double(), nullable=False),
        sa.Column("state", sa.Text(), server_default="running", nullable=False),
        sa.Column("matched", sa.BigInteger(), nullable=False),
        sa.Column("more", sa.Boolean(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), server_default="0", nullable=False) for name in ("done", "failed", "skipped")),
        sa.Column("failures", JSONB, server_default=sa.text("'[]'::jsonb"), nullable=False),
        sa.Column("cursor", sa.UUID(), nullable=True),
        sa.Column("next_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("key_id", sa.UUID(), nullable=True),
        sa.Column("maker", JSONB, nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("ended_at", MOMENT, nullable=True),
        sa.Column("stopped_by", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="bulk_acts_pkey"),
        sa.CheckConstraint("act IN ('cancel', 'replay', 'label')", name="act"),
        sa.CheckConstraint("state IN ('running', 'stopped', 'done')", name="state"),
        sa.CheckConstraint("(state = 'running') = (ended_at IS NULL)", name="ended"),
        sa.CheckConstraint("(state = 'stopped') = (stopped_by IS NOT NULL)", name="stopped"),
        sa.CheckConstraint("rate > 0", name="rate"),
    )
    op.create_index("bulk_acts_running_idx", "bulk_acts", ["id"], postgresql_where=sa.text("state = 'running'"))
    op.create_index("bulk_acts_namespace_idx", "bulk_acts", ["namespace", "id"])
    op.create_table(
        "saved_views",
        sa.Column("id", sa.UUID(), server_default=sa.text("minion_uuidv7()"), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("shared", sa.Boolean(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("query", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="saved_views_pkey"),
        sa.CheckConstraint("name <> ''", name="name"),
    )
    op.create_index(
        "saved_views_name_idx",
        "saved_views",
        ["namespace", sa.text("(CASE WHEN shared THEN '' ELSE owner END)"), "name"],
        unique=True,
    )


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or continue with this release.")
