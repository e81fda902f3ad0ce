"""Tasks, their executions, steps and outcomes.

The columns that change often (`task_status`) are a narrow row, separate from the constant ones (`tasks`) and from the
outcome (`task_outcomes`). Large outputs are content-addressed rows (`contents`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    SmallInteger,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql import UUID as PgUUID
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import Text

from shared.database.tables.base import (
    EMPTY_OBJECT,
    FINAL_STATES,
    NOW,
    STATES,
    TRANSACTION,
    Base,
    created,
    ended_in_column,
    ended_in_index,
    key_order_column,
    namespace_column,
    new_id,
)


class Conversation(Base):
    """The messages that tasks with the same `conversation_id` share."""

    __tablename__ = "conversations"

    namespace: Mapped[str] = mapped_column(primary_key=True, server_default="default")
    id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime] = created()


class Message(Base):
    """One message of a conversation; ids sort by age."""

    __tablename__ = "messages"
    __table_args__ = (
        ForeignKeyConstraint(
            ["namespace", "conversation_id"],
            ["conversations.namespace", "conversations.id"],
            ondelete="CASCADE",
            name="messages_conversation_fkey",
        ),
        CheckConstraint("role IN ('user', 'assistant', 'system', 'tool')", name="role"),
        Index("messages_conversation_idx", "namespace", "conversation_id", "id"),
    )

    id: Mapped[UUID] = new_id()
    namespace: Mapped[str] = namespace_column()
    conversation_id: Mapped[str]
    task_id: Mapped[UUID | None] = mapped_column(ForeignKey("tasks.id", ondelete="SET NULL"), index=True)
    role: Mapped[str]
    content: Mapped[Any] = mapped_column(JSONB)
    created_at: Mapped[datetime] = created()


class TaskRow(Base):
    """The submitted request for one piece of work. Never changes, except for the routing that pins its agent version.

    A replay from a step has `from_step`, and `history_before`, which hides later messages of its conversation.
    Idempotency keys are derived from `effect_origin` if it is set, else from `origin_id`. `submitter_keys`: the ids of
    the API keys that submitted it, its ancestors and, for a replay, its original; `bootstrap` is the administrator's.
    `lane`: that of its model calls; NULL: its agent's.
    """

    __tablename__ = "tasks"
    __table_args__ = (
        CheckConstraint("depth >= 0", name="depth"),
        CheckConstraint("jsonb_typeof(labels) = 'object'", name="labels"),
        CheckConstraint("(parent_id IS NULL) = (parent_step IS NULL)", name="parent"),
        CheckConstraint("(agent_version_id IS NULL) OR (agent_name IS NOT NULL)", name="pinned"),
        Index("tasks_agent_idx", "namespace", "agent_name", "id"),
        Index("tasks_parent_idx", "parent_id", postgresql_where=text("parent_id IS NOT NULL")),
        Index("tasks_root_idx", "root_id"),
        Index("tasks_replay_idx", "replay_of", postgresql_where=text("replay_of IS NOT NULL")),
        Index(
            "tasks_conversation_idx",
            "namespace",
            "conversation_id",
            "id",
            postgresql_where=text("conversation_id IS NOT NULL"),
        ),
    )

    id: Mapped[UUID] = new_id()
    namespace: Mapped[str] = namespace_column()
    agent_name: Mapped[str | None]
    agent_version_id: Mapped[UUID | None] = mapped_column(ForeignKey("agent_versions.id"))
    capability: Mapped[str | None]
    input: Mapped[Any | None] = mapped_column(JSONB(none_as_null=True))
    input_order: Mapped[dict[str, Any] | None] = key_order_column()
    messages: Mapped[Any | None] = mapped_column(JSONB(none_as_null=True))
    parent_id: Mapped[UUID | None] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"))
    parent_step: Mapped[int | None]
    root_id: Mapped[UUID]
    depth: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    replay_of: Mapped[UUID | None] = mapped_column(ForeignKey("tasks.id", ondelete="SET NULL"))
    origin_id: Mapped[UUID]
    conversation_id: Mapped[str | None]
    key: Mapped[str | None]
    labels: Mapped[dict[str, Any]] = mapped_column(server_default=EMPTY_OBJECT)
    submitted_by: Mapped[str | None]
    traceparent: Mapped[str | None]
    journal_format: Mapped[int] = mapped_column(SmallInteger, server_default="1")
    deadline: Mapped[datetime | None]
    created_at: Mapped[datetime] = created()
    budget_ids: Mapped[list[UUID] | None] = mapped_column(ARRAY(PgUUID(as_uuid=True)))
    routing: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    from_step: Mapped[int | None]
    history_before: Mapped[datetime | None]
    effect_origin: Mapped[UUID | None]
    submitter_keys: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    lane: Mapped[str | None]


class TaskStatus(Base):
    """The state of a task: the narrow row that changes. Written only by the functions in `shared/tasks/sql/`."""

    __tablename__ = "task_status"
    __table_args__ = (
        CheckConstraint(f"state IN ({STATES})", name="state"),
        CheckConstraint("(state = 'running') = (worker_id IS NOT NULL)", name="running_has_worker"),
        CheckConstraint("(state = 'waiting') = (wait_reason IS NOT NULL)", name="waiting_has_reason"),
        CheckConstraint("claim >= 0 AND attempts >= 0 AND losses >= 0", name="counters"),
        CheckConstraint("open_waits >= 0 AND (open_waits = 0 OR state = 'waiting')", name="open_waits"),
        CheckConstraint("priority BETWEEN -100 AND 100", name="priority"),
        CheckConstraint("capability IS NOT NULL OR state NOT IN ('queued', 'running', 'waiting')", name="routed"),
        CheckConstraint(
            "CASE state WHEN 'scheduled' THEN due_at IS NOT NULL WHEN 'waiting' THEN true ELSE due_at IS NULL END",
            name="due",
        ),
        CheckConstraint(
            f"NOT cancel_requested OR state IN ('running', {FINAL_STATES})", name="cancel_reaches_only_the_running"
        ),
        Index("task_status_state_idx", "state", "task_id"),
        Index(
            "task_status_line_idx",
            "capability",
            "namespace",
            "key",
            "agent_name",
            "rank",
            "task_id",
            postgresql_where=text("state = 'pending'"),
        ),
        Index(
            "task_status_in_flight_idx",
            "capability",
            "namespace",
            "key",
            "agent_name",
            postgresql_where=text("state IN ('queued', 'running')"),
        ),
        Index(
            "task_status_parked_idx",
            "namespace",
            "conversation_id",
            "task_id",
            postgresql_where=text("state = 'pending' AND rank = 9000000000000000000"),
        ),
        Index(
            "task_status_turn_idx",
            "namespace",
            "conversation_id",
            text("(claim = 0)"),
            "task_id",
            postgresql_where=text(
                "conversation_id IS NOT NULL AND state IN ('pending', 'queued', 'running', 'waiting')"
            ),
        ),
        Index("task_status_queued_idx", "capability", "queued_at", postgresql_where=text("state = 'queued'")),
        Index("task_status_worker_idx", "worker_id", postgresql_where=text("worker_id IS NOT NULL")),
        Index(
            "task_status_due_idx",
            "due_at",
            postgresql_where=text("due_at IS NOT NULL AND state IN ('scheduled', 'waiting')"),
        ),
        Index(
            "task_status_deadline_idx",
            "deadline",
            postgresql_where=text(f"deadline IS NOT NULL AND state NOT IN ({FINAL_STATES})"),
        ),
        Index("task_status_budget_idx", "task_id", postgresql_where=text("wait_reason = 'budget'")),
        Index(
            "task_status_held_idx",
            "wait_reason",
            "task_id",
            postgresql_where=text("wait_reason IN ('stopped', 'standing_budget')"),
        ),
        Index(
            "task_status_people_idx",
            "task_id",
            postgresql_where=text("state = 'waiting' AND wait_reason IN ('approval', 'answer')"),
        ),
        # Dispatch reads past the dead entries of tasks that have left their queue: vacuum soon.
        {
            "postgresql_with": {
                "fillfactor": "80",
                "autovacuum_vacuum_scale_factor": "0.01",
                "autovacuum_vacuum_threshold": "2000",
                "autovacuum_analyze_scale_factor": "0.02",
            }
        },
    )

    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    state: Mapped[str]
    capability: Mapped[str | None]
    priority: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    claim: Mapped[int] = mapped_column(server_default="0")
    attempts: Mapped[int] = mapped_column(server_default="0")
    losses: Mapped[int] = mapped_column(server_default="0")
    worker_id: Mapped[UUID | None] = mapped_column(ForeignKey("workers.id"))
    queued_at: Mapped[datetime | None]
    published: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    published_at: Mapped[datetime | None]
    open_waits: Mapped[int] = mapped_column(server_default="0")
    wait_reason: Mapped[str | None]
    due_at: Mapped[datetime | None]
    deadline: Mapped[datetime | None]
    namespace: Mapped[str] = namespace_column()
    agent_name: Mapped[str] = mapped_column(server_default="")
    key: Mapped[str] = mapped_column(server_default="")
    conversation_id: Mapped[str | None]
    rank: Mapped[int] = mapped_column(BigInteger, server_default="0")
    cancel_requested: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Content(Base):
    """A large JSON value, stored once and identified by the SHA-256 of its text."""

    __tablename__ = "contents"

    sha256: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[Any] = mapped_column(JSONB)
    created_at: Mapped[datetime] = created()


class TaskOutcome(Base):
    """The outcome of a task. One row, written once."""

    __tablename__ = "task_outcomes"
    __table_args__ = (
        CheckConstraint(f"state IN ({FINAL_STATES})", name="state"),
        CheckConstraint("(state = 'failed') <= (error IS NOT NULL)", name="failed_has_error"),
        CheckConstraint("output IS NULL OR output_sha256 IS NULL", name="one_output"),
        Index("task_outcomes_content_idx", "output_sha256", postgresql_where=text("output_sha256 IS NOT NULL")),
        Index("task_outcomes_error_idx", "error_fingerprint", "finished_at", postgresql_where=text("state = 'failed'")),
        ended_in_index("task_outcomes"),
    )

    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    state: Mapped[str]
    output: Mapped[Any | None] = mapped_column(JSONB)
    output_order: Mapped[dict[str, Any] | None] = key_order_column()
    output_sha256: Mapped[str | None] = mapped_column(ForeignKey("contents.sha256"))
    error: Mapped[dict[str, Any] | None]
    error_fingerprint: Mapped[str | None]
    finished_at: Mapped[datetime] = created()
    ended_in: Mapped[int | None] = ended_in_column(TRANSACTION)


class Execution(Base):
    """One claim of a task by one minion.

    `stream_key` is a secret of the worker and the orchestrator, for what is streamed; NULL where a release before 0.3
    began it.
    """

    __tablename__ = "executions"
    __table_args__ = (
        CheckConstraint(
            "outcome IN ('running', 'succeeded', 'failed', 'retried', 'suspended', 'handed_back', 'lost', "
            "'cancelled', 'expired')",
            name="outcome",
        ),
        Index(
            "executions_one_success_idx",
            "task_id",
            unique=True,
            postgresql_where=text("outcome = 'succeeded'"),
        ),
        Index("executions_worker_idx", "worker_id"),
        ended_in_index("executions"),
    )

    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    claim: Mapped[int] = mapped_column(primary_key=True)
    worker_id: Mapped[UUID] = mapped_column(ForeignKey("workers.id"))
    outcome: Mapped[str] = mapped_column(server_default="running")
    error: Mapped[dict[str, Any] | None]
    cpu_seconds: Mapped[float | None]
    peak_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    input_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    output_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    cost_microdollars: Mapped[int] = mapped_column(BigInteger, server_default="0")
    started_at: Mapped[datetime] = created()
    finished_at: Mapped[datetime | None]
    stream_key: Mapped[bytes | None]
    ended_in: Mapped[int | None] = ended_in_column()


class Step(Base):
    """One journaled effect inside a task: a model call, tool call, function call, sub-task or wait.

    `approvals`: of a call with an approval policy: {people, by, arguments, order, edited}; see `shared/tasks/sql/`.
    `program`: of a call that a program made, and of that program itself: the number of the program's step. `line`: the
    line of the program that made the call.
    `copied_from`: the task that executed the step, if this task is a replay that continues after it. That task may have
    been deleted since.
    """

    __tablename__ = "steps"
    __table_args__ = (
        CheckConstraint("number > 0", name="number"),
        CheckConstraint("kind IN ('model_call', 'tool_call', 'function_call', 'subtask', 'wait')", name="kind"),
        CheckConstraint("status IN ('started', 'finished', 'failed')", name="status"),
        CheckConstraint("child_id IS NULL OR kind = 'subtask'", name="only_subtasks_have_children"),
        Index("steps_child_idx", "child_id", postgresql_where=text("child_id IS NOT NULL")),
        Index("steps_due_idx", "due_at", postgresql_where=text("due_at IS NOT NULL AND status = 'started'")),
        Index("steps_open_idx", "task_id", postgresql_where=text("status = 'started' AND kind IN ('subtask', 'wait')")),
        ended_in_index("steps"),
    )

    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    status: Mapped[str]
    effect: Mapped[str] = mapped_column(server_default="pure")
    request_hash: Mapped[str]
    claim: Mapped[int]
    input: Mapped[Any | None] = mapped_column(JSONB)
    input_order: Mapped[dict[str, Any] | None] = key_order_column()
    output: Mapped[Any | None] = mapped_column(JSONB)
    output_order: Mapped[dict[str, Any] | None] = key_order_column()
    error: Mapped[dict[str, Any] | None]
    stdout: Mapped[str | None]
    usage: Mapped[dict[str, Any] | None]
    cost_microdollars: Mapped[int] = mapped_column(BigInteger, server_default="0")
    child_id: Mapped[UUID | None] = mapped_column(ForeignKey("tasks.id", ondelete="SET NULL"))
    function_version_id: Mapped[UUID | None] = mapped_column(ForeignKey("function_versions.id"))
    due_at: Mapped[datetime | None]
    started_at: Mapped[datetime] = created()
    finished_at: Mapped[datetime | None]
    copied_from: Mapped[UUID | None]
    approvals: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    program: Mapped[int | None]
    line: Mapped[int | None]
    ended_in: Mapped[int | None] = ended_in_column()


class IdempotencyKey(Base):
    """A key that a submitter chose: the same key and payload give the same task."""

    __tablename__ = "idempotency_keys"

    namespace: Mapped[str] = mapped_column(primary_key=True, server_default="default")
    key: Mapped[str] = mapped_column(primary_key=True)
    task_id: Mapped[UUID] = mapped_column(
        ForeignKey("tasks.id", ondelete="CASCADE", deferrable=True, initially="DEFERRED"), index=True
    )
    request: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = created()


class Worker(Base):
    """A minion's main process: its capabilities, its slots, and the heartbeat that keeps its leases alive."""

    __tablename__ = "workers"
    __table_args__ = (
        CheckConstraint("status IN ('online', 'stopped', 'lost')", name="status"),
        Index("workers_online_idx", "last_seen", postgresql_where=text("status = 'online'")),
    )

    id: Mapped[UUID] = new_id()
    name: Mapped[str]
    capabilities: Mapped[list[str]]
    slots: Mapped[int]
    busy: Mapped[int] = mapped_column(server_default="0")
    idle_since: Mapped[datetime | None]
    active: Mapped[list[str]] = mapped_column(server_default=text("'{}'::text[]"))
    packages: Mapped[list[str] | None]
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(server_default="online")
    pool: Mapped[str]
    host: Mapped[str]
    pid: Mapped[int]
    version: Mapped[str]
    started_at: Mapped[datetime] = created()
    last_seen: Mapped[datetime] = mapped_column(server_default=NOW)
