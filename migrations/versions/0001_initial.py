"""The first schema: definitions, tasks, journal, workers, and the triggers that keep their invariants."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.sql import run_file

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None
PHASE = "before"


def upgrade() -> None:
    create_tables()
    run_file(op.get_bind(), "0001_triggers.sql")


def create_tables() -> None:
    op.create_table(
        "agents",
        sa.Column("id", sa.UUID(), server_default=sa.text("minion_uuidv7()"), nullable=False),
        sa.Column("namespace", sa.Text(), server_default="default", nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="active", nullable=False),
        sa.Column("status_reason", sa.Text(), nullable=True),
        sa.Column("active_version_id", sa.UUID(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "status IN ('active', 'deprecated', 'disabled', 'rolled_back')", name=op.f("agents_status_check")
        ),
        sa.PrimaryKeyConstraint("id", name="agents_pkey"),
        sa.UniqueConstraint("namespace", "name", name="agents_namespace_name_key"),
    )
    op.create_table(
        "contents",
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("value", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="contents_pkey"),
    )
    op.create_table(
        "conversations",
        sa.Column("namespace", sa.Text(), server_default="default", nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "id", name="conversations_pkey"),
    )
    op.create_table(
        "functions",
        sa.Column("id", sa.UUID(), server_default=sa.text("minion_uuidv7()"), nullable=False),
        sa.Column("namespace", sa.Text(), server_default="default", nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("active_version_id", sa.UUID(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="functions_pkey"),
        sa.UniqueConstraint("namespace", "name", name="functions_namespace_name_key"),
    )
    op.create_table(
        "tools",
        sa.Column("id", sa.UUID(), server_default=sa.text("minion_uuidv7()"), nullable=False),
        sa.Column("namespace", sa.Text(), server_default="default", nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("active_version_id", sa.UUID(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="tools_pkey"),
        sa.UniqueConstraint("namespace", "name", name="tools_namespace_name_key"),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.UUID(), server_default=sa.text("minion_uuidv7()"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("capabilities", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("busy", sa.Integer(), server_default="0", nullable=False),
        sa.Column("idle_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("active", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'::text[]"), nullable=False),
        sa.Column("status", sa.Text(), server_default="online", nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_seen", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("status IN ('online', 'stopped', 'lost')", name=op.f("workers_status_check")),
        sa.PrimaryKeyConstraint("id", name="workers_pkey"),
    )
    op.create_index(
        "workers_online_idx", "workers", ["last_seen"], unique=False, postgresql_where=sa.text("status = 'online'")
    )
    op.create_table(
        "function_versions",
        sa.Column("id", sa.UUID(), server_default=sa.text("minion_uuidv7()"), nullable=False),
        sa.Column("function_id", sa.UUID(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("checksum", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("definition", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("status", sa.Text(), server_default="active", nullable=False),
        sa.Column("status_reason", sa.Text(), nullable=True),
        sa.Column("released_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "status IN ('active', 'deprecated', 'quarantined')", name=op.f("function_versions_status_check")
        ),
        sa.ForeignKeyConstraint(
            ["function_id"], ["functions.id"], name="function_versions_function_id_fkey", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="function_versions_pkey"),
        sa.UniqueConstraint("function_id", "checksum", name="function_versions_function_id_checksum_key"),
        sa.UniqueConstraint("function_id", "number", name="function_versions_function_id_number_key"),
    )
    op.create_table(
        "tool_versions",
        sa.Column("id", sa.UUID(), server_default=sa.text("minion_uuidv7()"), nullable=False),
        sa.Column("tool_id", sa.UUID(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("checksum", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("effect", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("definition", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("function_version_id", sa.UUID(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("effect IN ('pure', 'idempotent', 'unsafe')", name=op.f("tool_versions_effect_check")),
        sa.CheckConstraint(
            "type IN ('function', 'http', 'mcp', 'agent', 'builtin')", name=op.f("tool_versions_type_check")
        ),
        sa.ForeignKeyConstraint(
            ["function_version_id"], ["function_versions.id"], name="tool_versions_function_version_id_fkey"
        ),
        sa.ForeignKeyConstraint(["tool_id"], ["tools.id"], name="tool_versions_tool_id_fkey", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="tool_versions_pkey"),
        sa.UniqueConstraint("tool_id", "checksum", name="tool_versions_tool_id_checksum_key"),
        sa.UniqueConstraint("tool_id", "number", name="tool_versions_tool_id_number_key"),
    )
    op.create_table(
        "agent_versions",
        sa.Column("id", sa.UUID(), server_default=sa.text("minion_uuidv7()"), nullable=False),
        sa.Column("agent_id", sa.UUID(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("checksum", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("capabilities", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("capability", sa.Text(), nullable=False),
        sa.Column("input_schema", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("definition", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("function_version_id", sa.UUID(), nullable=True),
        sa.Column("tool_version_id", sa.UUID(), nullable=True),
        sa.Column("soft_time_limit", sa.Integer(), nullable=False),
        sa.Column("time_limit", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column(
            "search",
            postgresql.TSVECTOR(),
            sa.Computed("minion_search_text(name, description, capabilities)", persisted=True),
            nullable=False,
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("type IN ('agent', 'function')", name=op.f("agent_versions_type_check")),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name="agent_versions_agent_id_fkey", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["function_version_id"], ["function_versions.id"], name="agent_versions_function_version_id_fkey"
        ),
        sa.ForeignKeyConstraint(["tool_version_id"], ["tool_versions.id"], name="agent_versions_tool_version_id_fkey"),
        sa.PrimaryKeyConstraint("id", name="agent_versions_pkey"),
        sa.UniqueConstraint("agent_id", "checksum", name="agent_versions_agent_id_checksum_key"),
        sa.UniqueConstraint("agent_id", "number", name="agent_versions_agent_id_number_key"),
    )
    op.create_index(
        "agent_versions_capabilities_idx", "agent_versions", ["capabilities"], unique=False, postgresql_using="gin"
    )
    op.create_index("agent_versions_search_idx", "agent_versions", ["search"], unique=False, postgresql_using="gin")
    op.create_table(
        "agent_version_tools",
        sa.Column("agent_version_id", sa.UUID(), nullable=False),
        sa.Column("position", sa.SmallInteger(), nullable=False),
        sa.Column("tool_version_id", sa.UUID(), nullable=False),
        sa.ForeignKeyConstraint(
            ["agent_version_id"],
            ["agent_versions.id"],
            name="agent_version_tools_agent_version_id_fkey",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["tool_version_id"], ["tool_versions.id"], name="agent_version_tools_tool_version_id_fkey"
        ),
        sa.PrimaryKeyConstraint("agent_version_id", "position", name="agent_version_tools_pkey"),
    )
    op.create_table(
        "relations",
        sa.Column("agent_version_id", sa.UUID(), nullable=False),
        sa.Column("position", sa.SmallInteger(), nullable=False),
        sa.Column("agent_name", sa.Text(), nullable=False),
        sa.Column("for_each", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["agent_version_id"], ["agent_versions.id"], name="relations_agent_version_id_fkey", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("agent_version_id", "position", name="relations_pkey"),
    )
    op.create_table(
        "tasks",
        sa.Column("id", sa.UUID(), server_default=sa.text("minion_uuidv7()"), nullable=False),
        sa.Column("namespace", sa.Text(), server_default="default", nullable=False),
        sa.Column("agent_name", sa.Text(), nullable=True),
        sa.Column("agent_version_id", sa.UUID(), nullable=True),
        sa.Column("capability", sa.Text(), nullable=True),
        sa.Column("input", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("messages", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("parent_id", sa.UUID(), nullable=True),
        sa.Column("parent_step", sa.Integer(), nullable=True),
        sa.Column("root_id", sa.UUID(), nullable=False),
        sa.Column("depth", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("replay_of", sa.UUID(), nullable=True),
        sa.Column("origin_id", sa.UUID(), nullable=False),
        sa.Column("conversation_id", sa.Text(), nullable=True),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column(
            "labels", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("submitted_by", sa.Text(), nullable=True),
        sa.Column("traceparent", sa.Text(), nullable=True),
        sa.Column("journal_format", sa.SmallInteger(), server_default="1", nullable=False),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("(agent_version_id IS NULL) OR (agent_name IS NOT NULL)", name=op.f("tasks_pinned_check")),
        sa.CheckConstraint("(parent_id IS NULL) = (parent_step IS NULL)", name=op.f("tasks_parent_check")),
        sa.CheckConstraint("depth >= 0", name=op.f("tasks_depth_check")),
        sa.CheckConstraint("jsonb_typeof(labels) = 'object'", name=op.f("tasks_labels_check")),
        sa.ForeignKeyConstraint(["agent_version_id"], ["agent_versions.id"], name="tasks_agent_version_id_fkey"),
        sa.ForeignKeyConstraint(["parent_id"], ["tasks.id"], name="tasks_parent_id_fkey", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["replay_of"], ["tasks.id"], name="tasks_replay_of_fkey", ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name="tasks_pkey"),
    )
    op.create_index("tasks_agent_idx", "tasks", ["namespace", "agent_name", "id"], unique=False)
    op.create_index(
        "tasks_conversation_idx",
        "tasks",
        ["namespace", "conversation_id", "id"],
        unique=False,
        postgresql_where=sa.text("conversation_id IS NOT NULL"),
    )
    op.create_index(
        "tasks_parent_idx", "tasks", ["parent_id"], unique=False, postgresql_where=sa.text("parent_id IS NOT NULL")
    )
    op.create_index(
        "tasks_replay_idx", "tasks", ["replay_of"], unique=False, postgresql_where=sa.text("replay_of IS NOT NULL")
    )
    op.create_index("tasks_root_idx", "tasks", ["root_id"], unique=False)
    op.create_table(
        "executions",
        sa.Column("task_id", sa.UUID(), nullable=False),
        sa.Column("claim", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.UUID(), nullable=False),
        sa.Column("outcome", sa.Text(), server_default="running", nullable=False),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("cpu_seconds", sa.Double(), nullable=True),
        sa.Column("peak_memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("input_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cost_microdollars", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "outcome IN ('running', 'succeeded', 'failed', 'retried', 'suspended', 'handed_back', 'lost', 'cancelled', 'expired')",
            name=op.f("executions_outcome_check"),
        ),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="executions_task_id_fkey", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name="executions_worker_id_fkey"),
        sa.PrimaryKeyConstraint("task_id", "claim", name="executions_pkey"),
    )
    op.create_index(
        "executions_one_success_idx",
        "executions",
        ["task_id"],
        unique=True,
        postgresql_where=sa.text("outcome = 'succeeded'"),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("namespace", sa.Text(), server_default="default", nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("task_id", sa.UUID(), nullable=False),
        sa.Column("request", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["task_id"],
            ["tasks.id"],
            name="idempotency_keys_task_id_fkey",
            ondelete="CASCADE",
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("namespace", "key", name="idempotency_keys_pkey"),
    )
    op.create_index("idempotency_keys_task_id_idx", "idempotency_keys", ["task_id"], unique=False)
    op.create_table(
        "messages",
        sa.Column("id", sa.UUID(), server_default=sa.text("minion_uuidv7()"), nullable=False),
        sa.Column("namespace", sa.Text(), server_default="default", nullable=False),
        sa.Column("conversation_id", sa.Text(), nullable=False),
        sa.Column("task_id", sa.UUID(), nullable=True),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("content", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("role IN ('user', 'assistant', 'system', 'tool')", name=op.f("messages_role_check")),
        sa.ForeignKeyConstraint(
            ["namespace", "conversation_id"],
            ["conversations.namespace", "conversations.id"],
            name="messages_conversation_fkey",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="messages_task_id_fkey", ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name="messages_pkey"),
    )
    op.create_index("messages_conversation_idx", "messages", ["namespace", "conversation_id", "id"], unique=False)
    op.create_index("messages_task_id_idx", "messages", ["task_id"], unique=False)
    op.create_table(
        "steps",
        sa.Column("task_id", sa.UUID(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("effect", sa.Text(), server_default="pure", nullable=False),
        sa.Column("request_hash", sa.Text(), nullable=False),
        sa.Column("claim", sa.Integer(), nullable=False),
        sa.Column("input", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("output", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("stdout", sa.Text(), nullable=True),
        sa.Column("usage", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("cost_microdollars", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("child_id", sa.UUID(), nullable=True),
        sa.Column("function_version_id", sa.UUID(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "child_id IS NULL OR kind = 'subtask'", name=op.f("steps_only_subtasks_have_children_check")
        ),
        sa.CheckConstraint(
            "kind IN ('model_call', 'tool_call', 'function_call', 'subtask', 'wait')", name=op.f("steps_kind_check")
        ),
        sa.CheckConstraint("status IN ('started', 'finished', 'failed')", name=op.f("steps_status_check")),
        sa.CheckConstraint("number > 0", name=op.f("steps_number_check")),
        sa.ForeignKeyConstraint(["child_id"], ["tasks.id"], name="steps_child_id_fkey", ondelete="SET NULL"),
        sa.ForeignKeyConstraint(
            ["function_version_id"], ["function_versions.id"], name="steps_function_version_id_fkey"
        ),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="steps_task_id_fkey", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task_id", "number", name="steps_pkey"),
    )
    op.create_index(
        "steps_child_idx", "steps", ["child_id"], unique=False, postgresql_where=sa.text("child_id IS NOT NULL")
    )
    op.create_table(
        "task_outcomes",
        sa.Column("task_id", sa.UUID(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("output", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("output_sha256", sa.Text(), nullable=True),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("error_fingerprint", sa.Text(), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "(state = 'failed') <= (error IS NOT NULL)", name=op.f("task_outcomes_failed_has_error_check")
        ),
        sa.CheckConstraint(
            "state IN ('cancelled', 'expired', 'failed', 'succeeded')", name=op.f("task_outcomes_state_check")
        ),
        sa.CheckConstraint("output IS NULL OR output_sha256 IS NULL", name=op.f("task_outcomes_one_output_check")),
        sa.ForeignKeyConstraint(["output_sha256"], ["contents.sha256"], name="task_outcomes_output_sha256_fkey"),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="task_outcomes_task_id_fkey", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task_id", name="task_outcomes_pkey"),
    )
    op.create_index(
        "task_outcomes_fingerprint_idx",
        "task_outcomes",
        ["error_fingerprint"],
        unique=False,
        postgresql_where=sa.text("state = 'failed'"),
    )
    op.create_table(
        "task_status",
        sa.Column("task_id", sa.UUID(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("capability", sa.Text(), nullable=True),
        sa.Column("priority", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("claim", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("losses", sa.Integer(), server_default="0", nullable=False),
        sa.Column("worker_id", sa.UUID(), nullable=True),
        sa.Column("queued_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("published", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("open_waits", sa.Integer(), server_default="0", nullable=False),
        sa.Column("wait_reason", sa.Text(), nullable=True),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancel_requested", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "(state = 'running') = (worker_id IS NOT NULL)", name=op.f("task_status_running_has_worker_check")
        ),
        sa.CheckConstraint(
            "(state = 'waiting') = (wait_reason IS NOT NULL)", name=op.f("task_status_waiting_has_reason_check")
        ),
        sa.CheckConstraint(
            "state IN ('scheduled', 'pending', 'queued', 'running', 'waiting', 'succeeded', 'failed', 'cancelled', 'expired')",
            name=op.f("task_status_state_check"),
        ),
        sa.CheckConstraint("claim >= 0 AND attempts >= 0 AND losses >= 0", name=op.f("task_status_counters_check")),
        sa.CheckConstraint(
            "open_waits >= 0 AND (open_waits = 0 OR state = 'waiting')", name=op.f("task_status_open_waits_check")
        ),
        sa.CheckConstraint("priority BETWEEN -100 AND 100", name=op.f("task_status_priority_check")),
        sa.CheckConstraint(
            "capability IS NOT NULL OR state NOT IN ('queued', 'running', 'waiting')",
            name=op.f("task_status_routed_check"),
        ),
        sa.CheckConstraint(
            "CASE state WHEN 'scheduled' THEN due_at IS NOT NULL WHEN 'waiting' THEN true ELSE due_at IS NULL END",
            name=op.f("task_status_due_check"),
        ),
        sa.CheckConstraint(
            "NOT cancel_requested OR state IN ('running', 'cancelled', 'expired', 'failed', 'succeeded')",
            name=op.f("task_status_cancel_reaches_only_the_running_check"),
        ),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="task_status_task_id_fkey", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name="task_status_worker_id_fkey"),
        sa.PrimaryKeyConstraint("task_id", name="task_status_pkey"),
        postgresql_with={"fillfactor": "80"},
    )
    op.create_index(
        "task_status_deadline_idx",
        "task_status",
        ["deadline"],
        unique=False,
        postgresql_where=sa.text(
            "deadline IS NOT NULL AND state NOT IN ('cancelled', 'expired', 'failed', 'succeeded')"
        ),
    )
    op.create_index(
        "task_status_due_idx",
        "task_status",
        ["due_at"],
        unique=False,
        postgresql_where=sa.text("due_at IS NOT NULL AND state IN ('scheduled', 'waiting')"),
    )
    op.create_index(
        "task_status_pending_idx",
        "task_status",
        ["capability", sa.literal_column("priority DESC"), "task_id"],
        unique=False,
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index(
        "task_status_queued_idx",
        "task_status",
        ["capability", "queued_at"],
        unique=False,
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_index(
        "task_status_running_idx",
        "task_status",
        ["worker_id"],
        unique=False,
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_index("task_status_state_idx", "task_status", ["state", "task_id"], unique=False)
    op.create_table(
        "security_events",
        sa.Column("id", sa.UUID(), server_default=sa.text("minion_uuidv7()"), nullable=False),
        sa.Column("function_version_id", sa.UUID(), nullable=False),
        sa.Column("task_id", sa.UUID(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("detail", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["function_version_id"],
            ["function_versions.id"],
            name="security_events_function_version_id_fkey",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="security_events_task_id_fkey", ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name="security_events_pkey"),
    )
    op.create_index("security_events_version_idx", "security_events", ["function_version_id", "id"])
    op.create_index("security_events_task_id_idx", "security_events", ["task_id"])
    op.create_foreign_key("agents_active_version_id_fkey", "agents", "agent_versions", ["active_version_id"], ["id"])
    op.create_foreign_key(
        "functions_active_version_id_fkey", "functions", "function_versions", ["active_version_id"], ["id"]
    )
    op.create_foreign_key("tools_active_version_id_fkey", "tools", "tool_versions", ["active_version_id"], ["id"])


def downgrade() -> None:
    raise NotImplementedError("There is nothing before the first schema; drop the database instead.")
