"""Named API keys. Runs before 0.3 starts: release 0.2 does not read the table."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None
PHASE = "before"


def upgrade() -> None:
    texts = postgresql.ARRAY(sa.Text())
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "api_keys",
        sa.Column("id", sa.UUID(), server_default=sa.text("minion_uuidv7()"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("payloads", sa.Boolean(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=True),
        sa.Column("agents", texts, server_default=sa.text("'{}'::text[]"), nullable=False),
        sa.Column("capabilities", texts, server_default=sa.text("'{}'::text[]"), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=True),
        sa.Column("created_at", moment, server_default=sa.text("now()"), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("expires_at", moment, nullable=True),
        sa.Column("last_used_at", moment, nullable=True),
        sa.Column("rotated_at", moment, nullable=True),
        sa.Column("rotated_by", sa.Text(), nullable=True),
        sa.Column("previous_hash", sa.LargeBinary(), nullable=True),
        sa.Column("previous_prefix", sa.Text(), nullable=True),
        sa.Column("previous_until", moment, nullable=True),
        sa.Column("previous_used_at", moment, nullable=True),
        sa.Column("revoked_at", moment, nullable=True),
        sa.Column("revoked_by", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="api_keys_pkey"),
        sa.CheckConstraint("role IN ('viewer', 'submitter', 'operator', 'approver', 'author', 'admin')", name="role"),
        sa.CheckConstraint("octet_length(hash) = 32 AND octet_length(previous_hash) = 32", name="hash"),
        sa.CheckConstraint("num_nulls(previous_hash, previous_prefix, previous_until) IN (0, 3)", name="previous"),
    )
    op.create_index("api_keys_hash_idx", "api_keys", ["hash"], unique=True)
    op.create_index(
        "api_keys_previous_hash_idx",
        "api_keys",
        ["previous_hash"],
        unique=True,
        postgresql_where=sa.text("previous_hash IS NOT NULL"),
    )
    op.create_index(
        "api_keys_name_idx",
        "api_keys",
        [sa.text("COALESCE(namespace, '')"), "name"],
        unique=True,
        postgresql_where=sa.text("revoked_at IS NULL"),
    )


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or continue with this release.")
