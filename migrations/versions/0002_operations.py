"""Pauses, limits, fair shares, unique tasks, signals, schedules and webhooks; and the columns that order the queue.

Runs before the new release starts: the previous release continues to work on this schema.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.sql import run_file
from shared.tasks.sql import recreate

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None
PHASE = "before"

TIMESTAMP = sa.DateTime(timezone=True)
NOW = sa.text("now()")
NEW_ID = sa.text("minion_uuidv7()")
SCOPES = "scope IN ('capability', 'agent', 'key')"


def upgrade() -> None:
    connection = op.get_bind()
    add_columns()
    create_tables()
    run_file(connection, "0002_ranks.sql")
    create_indexes()
    recreate(connection, "minion_submit", "submit")


def add_columns() -> None:
    """Add columns without rewriting the tables."""
    op.add_column("task_status", sa.Column("namespace", sa.Text(), server_default="default", nullable=False))
    op.add_column("task_status", sa.Column("agent_name", sa.Text(), server_default="", nullable=False))
    op.add_column("task_status", sa.Column("key", sa.Text(), server_default="", nullable=False))
    op.add_column("task_status", sa.Column("rank", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("task_status", sa.Column("conversation_id", sa.Text(), nullable=True))
    op.add_column("steps", sa.Column("due_at", TIMESTAMP, nullable=True))


def create_indexes() -> None:
    op.create_index(
        "task_status_line_idx",
        "task_status",
        ["capability", "namespace", "key", "agent_name", "rank", "task_id"],
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index(
        "task_status_in_flight_idx",
        "task_status",
        ["capability", "namespace", "key", "agent_name"],
        postgresql_where=sa.text("state IN ('queued', 'running')"),
    )
    op.create_index(
        "task_status_parked_idx",
        "task_status",
        ["namespace", "conversation_id", "task_id"],
        postgresql_where=sa.text("state = 'pending' AND rank = 9000000000000000000"),
    )
    # The order of tasks in a conversation: those that have begun, then by id.
    op.create_index(
        "task_status_turn_idx",
        "task_status",
        ["namespace", "conversation_id", sa.text("(claim = 0)"), "task_id"],
        postgresql_where=sa.text(
            "conversation_id IS NOT NULL AND state IN ('pending', 'queued', 'running', 'waiting')"
        ),
    )
    # Retention looks up the rows to delete by these columns.
    op.create_index(
        "task_outcomes_content_idx",
        "task_outcomes",
        ["output_sha256"],
        postgresql_where=sa.text("output_sha256 IS NOT NULL"),
    )
    op.create_index("executions_worker_idx", "executions", ["worker_id"])
    op.create_index("security_events_time_idx", "security_events", ["function_version_id", "created_at"])
    op.create_index(
        "security_events_denied_idx",
        "security_events",
        ["function_version_id", "created_at"],
        postgresql_where=sa.text("kind IN ('forbidden_name', 'hash_mismatch', 'import_denied', 'security')"),
    )
    op.drop_index("task_status_running_idx", "task_status")
    op.create_index(
        "task_status_worker_idx",
        "task_status",
        ["worker_id"],
        postgresql_where=sa.text("worker_id IS NOT NULL"),
    )
    op.create_index(
        "steps_due_idx",
        "steps",
        ["due_at"],
        postgresql_where=sa.text("due_at IS NOT NULL AND status = 'started'"),
    )


def create_tables() -> None:
    create_rules()
    create_schedules()
    create_webhooks()
    create_task_tables()


def namespace() -> sa.Column[str]:
    return sa.Column("namespace", sa.Text(), server_default="default", nullable=False)


def new_id() -> sa.Column[object]:
    return sa.Column("id", sa.UUID(), server_default=NEW_ID, nullable=False)


def created() -> sa.Column[object]:
    return sa.Column("created_at", TIMESTAMP, server_default=NOW, nullable=False)


def create_rules() -> None:
    op.create_table(
        "pauses",
        namespace(),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        created(),
        sa.CheckConstraint(SCOPES, name=op.f("pauses_scope_check")),
        sa.PrimaryKeyConstraint("namespace", "scope", "name", name="pauses_pkey"),
    )
    op.create_table(
        "limits",
        namespace(),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("max_running", sa.Integer(), nullable=True),
        sa.Column("rate", sa.Integer(), nullable=True),
        sa.Column("period_seconds", sa.Double(), nullable=True),
        created(),
        sa.CheckConstraint(SCOPES, name=op.f("limits_scope_check")),
        sa.CheckConstraint("max_running >= 0", name=op.f("limits_max_running_check")),
        sa.CheckConstraint(
            "(rate IS NULL) = (period_seconds IS NULL) AND rate > 0 AND period_seconds > 0",
            name=op.f("limits_rate_check"),
        ),
        sa.CheckConstraint("max_running IS NOT NULL OR rate IS NOT NULL", name=op.f("limits_something_check")),
        sa.PrimaryKeyConstraint("namespace", "scope", "name", name="limits_pkey"),
    )
    op.create_table(
        "rate_holds",
        namespace(),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("until_at", TIMESTAMP, nullable=False),
        sa.CheckConstraint(SCOPES, name=op.f("rate_holds_scope_check")),
        sa.PrimaryKeyConstraint("namespace", "scope", "name", name="rate_holds_pkey"),
    )


def create_schedules() -> None:
    op.create_table(
        "schedules",
        new_id(),
        namespace(),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("cron", sa.Text(), nullable=True),
        sa.Column("timezone", sa.Text(), server_default="UTC", nullable=False),
        sa.Column("interval_seconds", sa.Double(), nullable=True),
        sa.Column("missed", sa.Text(), server_default="once", nullable=False),
        sa.Column("request", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("next_at", TIMESTAMP, nullable=False),
        sa.Column("last_at", TIMESTAMP, nullable=True),
        sa.Column("last_task_id", sa.UUID(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        created(),
        sa.CheckConstraint(
            "(cron IS NULL) <> (interval_seconds IS NULL)", name=op.f("schedules_cron_or_interval_check")
        ),
        sa.CheckConstraint("interval_seconds > 0", name=op.f("schedules_interval_check")),
        sa.CheckConstraint("missed IN ('skip', 'once', 'all')", name=op.f("schedules_missed_check")),
        sa.PrimaryKeyConstraint("id", name="schedules_pkey"),
        sa.UniqueConstraint("namespace", "name", name="schedules_namespace_name_key"),
    )
    op.create_index("schedules_next_idx", "schedules", ["next_at"], postgresql_where=sa.text("enabled"))


def create_webhooks() -> None:
    empty_list = sa.text("'{}'::text[]")
    op.create_table(
        "webhooks",
        new_id(),
        namespace(),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("previous_secret", sa.Text(), nullable=True),
        sa.Column("rotated_at", TIMESTAMP, nullable=True),
        sa.Column("states", postgresql.ARRAY(sa.Text()), server_default=empty_list, nullable=False),
        sa.Column("agents", postgresql.ARRAY(sa.Text()), server_default=empty_list, nullable=False),
        sa.Column(
            "labels", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("roots_only", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        created(),
        sa.PrimaryKeyConstraint("id", name="webhooks_pkey"),
        sa.UniqueConstraint("namespace", "name", name="webhooks_namespace_name_key"),
    )
    op.create_table(
        "webhook_deliveries",
        new_id(),
        sa.Column("webhook_id", sa.UUID(), nullable=False),
        sa.Column("task_id", sa.UUID(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="pending", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_at", TIMESTAMP, server_default=NOW, nullable=False),
        sa.Column("last_status", sa.Integer(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("finished_at", TIMESTAMP, nullable=True),
        created(),
        sa.CheckConstraint(
            "state IN ('cancelled', 'expired', 'failed', 'succeeded')", name=op.f("webhook_deliveries_state_check")
        ),
        sa.CheckConstraint(
            "status IN ('pending', 'delivered', 'failed')", name=op.f("webhook_deliveries_status_check")
        ),
        sa.ForeignKeyConstraint(
            ["webhook_id"], ["webhooks.id"], name="webhook_deliveries_webhook_id_fkey", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="webhook_deliveries_task_id_fkey", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="webhook_deliveries_pkey"),
        sa.UniqueConstraint("webhook_id", "task_id", name="webhook_deliveries_webhook_id_task_id_key"),
    )
    op.create_index(
        "webhook_deliveries_next_idx",
        "webhook_deliveries",
        ["webhook_id", "next_at"],
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index("webhook_deliveries_webhook_id_idx", "webhook_deliveries", ["webhook_id", "id"])
    op.create_index("webhook_deliveries_task_id_idx", "webhook_deliveries", ["task_id"])


def create_task_tables() -> None:
    op.create_table(
        "secrets",
        namespace(),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("ciphertext", sa.Text(), nullable=False),
        created(),
        sa.Column("updated_at", TIMESTAMP, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("namespace", "name", name="secrets_pkey"),
    )
    op.create_table(
        "signals",
        new_id(),
        sa.Column("task_id", sa.UUID(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("payload", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("step", sa.Integer(), nullable=True),
        created(),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="signals_task_id_fkey", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="signals_pkey"),
    )
    op.create_index("signals_task_idx", "signals", ["task_id", "name", "id"])
    op.create_table(
        "unique_tasks",
        namespace(),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("task_id", sa.UUID(), nullable=False),
        sa.Column("held_while", sa.Text(), nullable=False),
        sa.CheckConstraint("held_while IN ('pending', 'running')", name=op.f("unique_tasks_held_while_check")),
        sa.ForeignKeyConstraint(
            ["task_id"],
            ["tasks.id"],
            name="unique_tasks_task_id_fkey",
            ondelete="CASCADE",
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("namespace", "key", name="unique_tasks_pkey"),
    )
    op.create_index("unique_tasks_task_id_idx", "unique_tasks", ["task_id"])


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or go on with this release: its schema serves the previous one too.")
