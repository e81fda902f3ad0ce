"""Bulk acts, saved views of the list of tasks, and labels that may change. Runs before 0.3 starts: 0.2 needs none of it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None
PHASE = "before"

MOMENT = sa.DateTime(timezone=True)
NOW = sa.text("now()")
JSONB = postgresql.JSONB(none_as_null=True)

# As before, but for the labels.
CONSTANT = """
CREATE OR REPLACE TRIGGER tasks_immutable BEFORE UPDATE ON tasks
    FOR EACH ROW WHEN (
        (OLD.agent_version_id IS NOT NULL AND NEW.agent_version_id IS DISTINCT FROM OLD.agent_version_id)
        OR (OLD.agent_name IS NOT NULL AND NEW.agent_name IS DISTINCT FROM OLD.agent_name)
        OR (OLD.id, OLD.namespace, OLD.root_id, OLD.origin_id, OLD.depth, OLD.created_at)
            IS DISTINCT FROM (NEW.id, NEW.namespace, NEW.root_id, NEW.origin_id, NEW.depth, NEW.created_at)
        OR (OLD.input, OLD.messages, OLD.parent_id, OLD.parent_step, OLD.conversation_id)
            IS DISTINCT FROM (NEW.input, NEW.messages, NEW.parent_id, NEW.parent_step, NEW.conversation_id)
        OR (OLD.capability, OLD.key, OLD.submitted_by, OLD.traceparent, OLD.journal_format, OLD.deadline)
            IS DISTINCT FROM (NEW.capability, NEW.key, NEW.submitted_by, NEW.traceparent, NEW.journal_format,
                              NEW.deadline)
        OR (NEW.replay_of IS NOT NULL AND NEW.replay_of IS DISTINCT FROM OLD.replay_of))
    EXECUTE FUNCTION minion_refuse_change()
"""


def upgrade() -> None:
    """Create the tables, and let labels change."""
    op.execute(CONSTANT)
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
        *(
            sa.Column(name, sa.BigInteger(), server_default="0", nullable=False)
            for name in ("done", "failed", "skipped")
        ),
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
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("query", sa.Text(), nullable=False),
        sa.Column("maker", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="saved_views_pkey"),
        sa.CheckConstraint("name <> ''", name="name"),
    )
    op.create_index(
        "saved_views_name_idx",
        "saved_views",
        ["namespace", sa.text("COALESCE(owner, '')"), "name"],
        unique=True,
    )


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or continue with this release.")
