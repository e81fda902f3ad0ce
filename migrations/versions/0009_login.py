"""Logins of browsers. Runs before 0.3 starts: release 0.2 does not read the table."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None
PHASE = "before"


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "login_sessions",
        sa.Column("id", sa.UUID(), server_default=sa.text("minion_uuidv7()"), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("user_name", sa.Text(), nullable=False),
        sa.Column("key_id", sa.UUID(), nullable=True),
        sa.Column("key_hash", sa.LargeBinary(), nullable=True),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("role", sa.Text(), nullable=True),
        sa.Column("payloads", sa.Boolean(), nullable=True),
        sa.Column("namespace", sa.Text(), nullable=True),
        sa.Column("tenant", sa.Text(), nullable=True),
        sa.Column("created_at", moment, server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", moment, nullable=False),
        sa.Column("idle", sa.Interval(), nullable=False),
        sa.Column("last_used_at", moment, server_default=sa.text("now()"), nullable=False),
        sa.Column("address", sa.Text(), nullable=True),
        sa.Column("user_agent", sa.Text(), nullable=True),
        sa.Column("ended_at", moment, nullable=True),
        sa.Column("ended_by", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="login_sessions_pkey"),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name="login_sessions_key_id_fkey", ondelete="CASCADE"),
        sa.CheckConstraint("kind IN ('administrator', 'key', 'oidc')", name="kind"),
        sa.CheckConstraint("octet_length(hash) = 32 AND octet_length(key_hash) = 32", name="hash"),
        sa.CheckConstraint("num_nonnulls(key_id, key_hash) = CASE kind WHEN 'key' THEN 2 ELSE 0 END", name="key"),
        sa.CheckConstraint(
            "num_nonnulls(subject, role, payloads) = CASE kind WHEN 'oidc' THEN 3 ELSE 0 END", name="rights"
        ),
        sa.CheckConstraint("role IN ('viewer', 'submitter', 'operator', 'approver', 'author', 'admin')", name="role"),
    )
    op.create_index("login_sessions_hash_idx", "login_sessions", ["hash"], unique=True)
    op.create_index("login_sessions_user_name_idx", "login_sessions", ["user_name"])
    op.create_index("login_sessions_expires_at_idx", "login_sessions", ["expires_at"])


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or continue with this release.")
