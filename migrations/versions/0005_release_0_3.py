"""Additions of release 0.3 to the tables. Runs before 0.3 starts: release 0.2 still works on this schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.sql import run_file

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None
PHASE = "before"

# On large tables: `shared.database.schema` builds them beforehand, while others use the tables. The healer finds open
# waits by the first.
INDEXES = {
    "steps_open_idx": "steps (task_id) WHERE status = 'started' AND kind IN ('subtask', 'wait')",
    "task_status_held_idx": "task_status (wait_reason, task_id) WHERE wait_reason IN ('stopped', 'standing_budget')",
}
KEY_ORDERS = (
    ("agent_versions", "key_order"),
    ("tool_versions", "key_order"),
    ("function_versions", "key_order"),
    ("tasks", "input_order"),
    ("task_outcomes", "output_order"),
    ("steps", "input_order"),
    ("steps", "output_order"),
    ("signals", "payload_order"),
    ("schedules", "request_order"),
)
# Without an ACL entry every role may execute the function.
PUBLIC_MAY_EXECUTE = """
    SELECT proacl IS NULL OR EXISTS (SELECT FROM aclexplode(proacl) WHERE grantee = 0) FROM pg_proc
    WHERE oid = to_regproc('minion_submit')
"""
SUBMITTERS = """
    SELECT quote_ident(rolname) FROM pg_roles
    WHERE has_table_privilege(oid, 'tasks', 'INSERT') AND has_table_privilege(oid, 'task_status', 'INSERT')
      AND NOT rolsuper AND rolname !~ '^pg_' AND oid <> (SELECT relowner FROM pg_class WHERE oid = 'tasks'::regclass)
"""


def upgrade() -> None:
    """Add columns without rewriting a table."""
    op.add_column("tasks", sa.Column("effect_origin", sa.UUID(), nullable=True))
    op.add_column("pauses", sa.Column("created_by", sa.Text(), nullable=True))
    op.add_column("limits", sa.Column("created_by", sa.Text(), nullable=True))
    # NULL: the worker's release does not report its packages.
    op.add_column("workers", sa.Column("packages", postgresql.ARRAY(sa.Text()), nullable=True))
    # NULL: the execution began before. A default would rewrite the table, so `minion_claim` fills it.
    op.add_column("executions", sa.Column("stream_key", postgresql.BYTEA(), nullable=True))
    keep_key_orders()
    keep_submitters()
    share_results()
    keep_scans_short()
    for name, definition in INDEXES.items():
        op.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {definition}")
    run_file(op.get_bind(), "0005_stops.sql")
    run_file(op.get_bind(), "0005_standing_budgets.sql")


def keep_key_orders() -> None:
    """Store the order of keys beside each value whose keys have an author's order: see `shared.contracts.key_order`.

    It distinguishes versions of a definition that are otherwise equal.
    """
    for table, column in KEY_ORDERS:
        op.add_column(table, sa.Column(column, postgresql.JSONB(none_as_null=True), nullable=True))
    for kind in ("agent", "tool", "function"):
        table = f"{kind}_versions"
        op.drop_constraint(f"{table}_{kind}_id_checksum_key", table)
        order = sa.text("md5(COALESCE(key_order::text, ''))")
        op.create_index(f"{table}_content_idx", table, [f"{kind}_id", "checksum", order], unique=True)


def keep_submitters() -> None:
    """Let only the roles submit by SQL that could do so before.

    `minion_submit` now runs with its owner's rights. Until now PUBLIC could execute it, but needed rights on the tables
    behind it.
    """
    connection = op.get_bind()
    if connection.scalar(sa.text(PUBLIC_MAY_EXECUTE)):
        connection.exec_driver_sql("REVOKE ALL ON FUNCTION minion_submit FROM PUBLIC")
        for role in connection.scalars(sa.text(SUBMITTERS)).all():
            connection.exec_driver_sql(f"GRANT EXECUTE ON FUNCTION minion_submit TO {role}")


def share_results() -> None:
    """Create the table of results that several tasks share."""
    op.create_table(
        "cached_results",
        sa.Column("key", sa.Text(), primary_key=True),
        sa.Column("namespace", sa.Text(), server_default="default", nullable=False),
        sa.Column("function_version_id", sa.UUID(), nullable=True),
        sa.Column("output", postgresql.JSONB(), nullable=False),
        sa.Column("output_order", postgresql.JSONB(none_as_null=True), nullable=True),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.UUID(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["function_version_id"], ["function_versions.id"], name="cached_results_function_version_id_fkey"
        ),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="cached_results_task_id_fkey", ondelete="CASCADE"),
    )
    op.create_index("cached_results_task_id_idx", "cached_results", ["task_id"])
    op.create_index("cached_results_expires_idx", "cached_results", ["expires_at"], postgresql_include=["bytes"])


def keep_scans_short() -> None:
    """Vacuum task states while few rows are dead.

    Tasks that were dispatched leave dead entries at the beginning of their queue, where each dispatch looks first.
    """
    op.execute(
        "ALTER TABLE task_status SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 2000, "
        "autovacuum_analyze_scale_factor = 0.02)"
    )


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or continue with this release.")
