"""Approval policies, bounds of SQL submitters, and quotas of keys. Runs before 0.3 starts: release 0.2 reads none."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None
PHASE = "before"


def upgrade() -> None:
    texts = postgresql.ARRAY(sa.Text())
    op.add_column("tasks", sa.Column("submitter_keys", texts, nullable=True))
    op.add_column("schedules", sa.Column("submitter_keys", texts, nullable=True))
    op.add_column("steps", sa.Column("approvals", postgresql.JSONB(none_as_null=True), nullable=True))
    op.add_column("api_keys", sa.Column("requests_per_minute", sa.Integer(), nullable=True))
    op.create_check_constraint("requests_per_minute", "api_keys", "requests_per_minute > 0")
    op.create_table(
        "sql_submitters",
        sa.Column("role", sa.Text(), primary_key=True),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("agents", texts, server_default=sa.text("'{}'::text[]"), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
    )


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or continue with this release.")
