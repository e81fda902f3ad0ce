"""MCP servers as definitions, and the version of a server that a tool pins. Runs before 0.3 starts: 0.2 reads neither."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.sql import run_file

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None
PHASE = "before"

MOMENT = sa.DateTime(timezone=True)
NOW = sa.text("now()")
ID = sa.text("minion_uuidv7()")


def upgrade() -> None:
    """Create the tables, and the reference to them."""
    op.create_table(
        "mcp_servers",
        sa.Column("id", sa.UUID(), server_default=ID, nullable=False),
        sa.Column("namespace", sa.Text(), server_default="default", nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("active_version_id", sa.UUID(), nullable=True),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("id", name="mcp_servers_pkey"),
        sa.UniqueConstraint("namespace", "name", name="mcp_servers_namespace_name_key"),
    )
    op.create_table(
        "mcp_server_versions",
        sa.Column("id", sa.UUID(), server_default=ID, nullable=False),
        sa.Column("mcp_server_id", sa.UUID(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("checksum", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("definition", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("key_order", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("id", name="mcp_server_versions_pkey"),
        sa.ForeignKeyConstraint(
            ["mcp_server_id"], ["mcp_servers.id"], name="mcp_server_versions_mcp_server_id_fkey", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("mcp_server_id", "number", name="mcp_server_versions_mcp_server_id_number_key"),
    )
    order = sa.text("md5(COALESCE(key_order::text, ''))")
    op.create_index(
        "mcp_server_versions_content_idx", "mcp_server_versions", ["mcp_server_id", "checksum", order], unique=True
    )
    op.create_foreign_key(
        "mcp_servers_active_version_id_fkey", "mcp_servers", "mcp_server_versions", ["active_version_id"], ["id"]
    )
    op.add_column("tool_versions", sa.Column("mcp_server_version_id", sa.UUID(), nullable=True))
    op.create_foreign_key(
        "tool_versions_mcp_server_version_id_fkey",
        "tool_versions",
        "mcp_server_versions",
        ["mcp_server_version_id"],
        ["id"],
    )
    run_file(op.get_bind(), "0023_mcp_servers.sql")


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or continue with this release.")
