"""Statistics, and the marks of ended work that they are counted from. Runs before 0.3 starts: 0.2 leaves them too."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.sql import run_file

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None
PHASE = "before"

# `shared.database.schema` adds the columns and builds the indexes beforehand, while others use the tables. Rows that
# ended before have no mark, and are not counted.
MARKED = ("steps", "executions", "task_outcomes", "security_events", "webhook_deliveries")
COLUMNS = dict.fromkeys(MARKED, "ended_in bigint")
INDEXES = {f"{table}_ended_in_idx": f"{table} (ended_in) WHERE ended_in IS NOT NULL" for table in MARKED}


def upgrade() -> None:
    """Add marks without rewriting a table, and the tables of the statistics."""
    for table, column in COLUMNS.items():
        op.execute(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {column}")
    for name, definition in INDEXES.items():
        op.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {definition}")
    keep_retried_steps()
    keep_statistics()
    run_file(op.get_bind(), "0010_ends.sql")


def keep_retried_steps() -> None:
    """Create the table of ends that a retry has overwritten."""
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "retried_steps",
        sa.Column("task_id", sa.UUID(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("ended_in", sa.BigInteger(), nullable=False),
        sa.Column("claim", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("usage", postgresql.JSONB(none_as_null=True), nullable=True),
        sa.Column("cost_microdollars", sa.BigInteger(), nullable=False),
        sa.Column("function_version_id", sa.UUID(), nullable=True),
        sa.Column("started_at", moment, nullable=False),
        sa.Column("finished_at", moment, nullable=True),
        sa.PrimaryKeyConstraint("task_id", "number", "ended_in", name="retried_steps_pkey"),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="retried_steps_task_id_fkey", ondelete="CASCADE"),
    )
    op.create_index("retried_steps_ended_in_idx", "retried_steps", ["ended_in"])


def keep_statistics() -> None:
    """Create the tables of what was counted, and of how far."""
    texts = ("agent", "capability", "tenant", "outcome", "step", "name", "function")
    sums = (
        "count",
        "microdollars",
        "saved_microdollars",
        "saved_steps",
        "input_tokens",
        "output_tokens",
        "cache_read_tokens",
        "cache_write_tokens",
        "cached",
    )
    histogram = postgresql.ARRAY(sa.BigInteger())
    moment = sa.DateTime(timezone=True)
    key = ("grain", "kind", "bucket", "namespace", "agent", "version", *texts[1:], "folded")
    op.create_table(
        "statistics",
        sa.Column("grain", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("bucket", moment, nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        *(sa.Column(name, sa.Text(), server_default="", nullable=False) for name in texts[:1]),
        sa.Column("version", sa.Integer(), server_default="0", nullable=False),
        *(sa.Column(name, sa.Text(), server_default="", nullable=False) for name in texts[1:]),
        sa.Column("folded", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        *(sa.Column(name, sa.BigInteger(), server_default="0", nullable=False) for name in sums),
        sa.Column("run_seconds", sa.Double(), server_default="0", nullable=False),
        sa.Column("wait_seconds", sa.Double(), server_default="0", nullable=False),
        sa.Column("runs", histogram, server_default=sa.text("'{}'::bigint[]"), nullable=False),
        sa.Column("waits", histogram, server_default=sa.text("'{}'::bigint[]"), nullable=False),
        sa.PrimaryKeyConstraint(*key, name="statistics_pkey"),
        sa.CheckConstraint("grain IN ('total', 'hour', 'day')", name="grain"),
        sa.CheckConstraint("kind IN ('task', 'failure', 'execution', 'step', 'security', 'webhook')", name="kind"),
    )
    op.create_table(
        "statistics_state",
        sa.Column("id", sa.SmallInteger(), server_default="1", nullable=False),
        sa.Column("counted_below", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("counted_at", moment, server_default=sa.text("now()"), nullable=False),
        sa.Column("moved_at", moment, server_default=sa.text("now()"), nullable=False),
        sa.Column("cluster", sa.BigInteger(), nullable=True),
        sa.Column("marked_below", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("marked_at", moment, server_default=sa.text("now()"), nullable=False),
        sa.Column("gauges", postgresql.JSONB(none_as_null=True), nullable=True),
        sa.Column("gauges_at", moment, nullable=True),
        sa.PrimaryKeyConstraint("id", name="statistics_state_pkey"),
        sa.CheckConstraint("id = 1", name="one"),
    )


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or continue with this release.")
