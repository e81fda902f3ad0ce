"""Tools that the Messages API defines, and what models remember. Runs before 0.3 starts: 0.2 reads none of it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None
PHASE = "before"

MOMENT = sa.DateTime(timezone=True)
NOW = sa.text("now()")
TYPES = "'function', 'http', 'mcp', 'agent', 'builtin', 'web_search', 'web_fetch', 'code_execution', 'memory'"


def upgrade() -> None:
    """Create the tables, and let tools have the new types."""
    op.drop_constraint(op.f("tool_versions_type_check"), "tool_versions")
    op.create_check_constraint(op.f("tool_versions_type_check"), "tool_versions", f"type IN ({TYPES})")
    op.create_table(
        "memory_stores",
        sa.Column("id", sa.UUID(), server_default=sa.text("minion_uuidv7()"), nullable=False),
        sa.Column("namespace", sa.Text(), server_default="default", nullable=False),
        sa.Column("tool", sa.Text(), nullable=False),
        sa.Column("per", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("changes", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("used_at", MOMENT, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("id", name="memory_stores_pkey"),
        sa.UniqueConstraint(
            "namespace",
            "tool",
            "per",
            "owner",
            "key",
            name="memory_stores_owner_key",
            postgresql_nulls_not_distinct=True,
        ),
        sa.CheckConstraint("per IN ('conversation', 'tenant', 'agent')", name="per"),
    )
    op.create_index("memory_stores_key_idx", "memory_stores", ["namespace", "key"])
    op.create_index("memory_stores_used_idx", "memory_stores", ["used_at"])
    op.create_table(
        "memory_changes",
        sa.Column("store_id", sa.UUID(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("command", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("new_path", sa.Text(), nullable=True),
        sa.Column("made_by", sa.Text(), nullable=False),
        sa.Column("task_id", sa.UUID(), nullable=True),
        sa.Column("step", sa.Integer(), nullable=True),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("result", sa.Text(), nullable=False),
        sa.Column("at", MOMENT, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("store_id", "number", name="memory_changes_pkey"),
        sa.UniqueConstraint("store_id", "idempotency_key", name="memory_changes_once_key"),
        sa.ForeignKeyConstraint(
            ["store_id"], ["memory_stores.id"], name="memory_changes_store_id_fkey", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "memory_versions",
        sa.Column("store_id", sa.UUID(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("content", sa.Text(), nullable=True),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("store_id", "path", "number", name="memory_versions_pkey"),
        sa.ForeignKeyConstraint(
            ["store_id", "number"],
            ["memory_changes.store_id", "memory_changes.number"],
            name="memory_versions_store_id_fkey",
            ondelete="CASCADE",
        ),
    )


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or continue with this release.")
