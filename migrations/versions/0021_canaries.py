"""Canaries of agent versions, and evaluations of their tasks. Runs before 0.3 starts: 0.2 reads none of it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None
PHASE = "before"

MOMENT = sa.DateTime(timezone=True)
NOW = sa.text("now()")
OUTCOMES = "'completed', 'rolled_back', 'ended', 'changed'"
STATES = "'due', 'submitted', 'scored', 'failed', 'skipped'"


def upgrade() -> None:
    """Create the tables."""
    op.add_column("agent_versions", sa.Column("evaluators", postgresql.JSONB(none_as_null=True, astext_type=sa.Text())))
    op.create_index(
        "agent_versions_evaluators_idx",
        "agent_versions",
        ["id"],
        postgresql_where=sa.text("evaluators IS NOT NULL"),
    )
    _create_canaries()
    _create_evaluations()


def _create_canaries() -> None:
    op.create_table(
        "canaries",
        sa.Column("id", sa.UUID(), server_default=sa.text("minion_uuidv7()"), nullable=False),
        sa.Column("agent_id", sa.UUID(), nullable=False),
        sa.Column("version_id", sa.UUID(), nullable=False),
        sa.Column("baseline_id", sa.UUID(), nullable=False),
        sa.Column("share", sa.Integer(), nullable=False),
        sa.Column("max_failures", sa.Double(), nullable=False),
        sa.Column("max_cost", sa.Double(), nullable=False),
        sa.Column("max_score_drop", sa.Double(), nullable=False),
        sa.Column("min_tasks", sa.Integer(), nullable=False),
        sa.Column(
            "looks",
            postgresql.JSONB(none_as_null=True, astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column("started_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("ended_at", MOMENT, nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="canaries_pkey"),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name="canaries_agent_id_fkey", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["version_id"], ["agent_versions.id"], name="canaries_version_id_fkey", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["baseline_id"], ["agent_versions.id"], name="canaries_baseline_id_fkey", ondelete="CASCADE"
        ),
        sa.CheckConstraint("version_id <> baseline_id", name="versions"),
        sa.CheckConstraint("share BETWEEN 1 AND 9999", name="share"),
        sa.CheckConstraint(f"outcome IN ({OUTCOMES})", name="outcome"),
        sa.CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", name="ended"),
    )
    is_open = sa.text("ended_at IS NULL")
    op.create_index("canaries_open_idx", "canaries", ["agent_id"], unique=True, postgresql_where=is_open)
    op.create_index("canaries_baseline_idx", "canaries", ["baseline_id"], postgresql_where=is_open)
    op.create_index("canaries_agent_idx", "canaries", ["agent_id", "id"])
    op.create_table(
        "canary_samples",
        sa.Column("canary_id", sa.UUID(), nullable=False),
        sa.Column("of_canary", sa.Boolean(), nullable=False),
        sa.Column("measure", sa.Text(), nullable=False),
        sa.Column("count", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("sum", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("squares", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("canary_id", "of_canary", "measure", name="canary_samples_pkey"),
        sa.ForeignKeyConstraint(
            ["canary_id"], ["canaries.id"], name="canary_samples_canary_id_fkey", ondelete="CASCADE"
        ),
    )


def _create_evaluations() -> None:
    op.create_table(
        "evaluations",
        sa.Column("task_id", sa.UUID(), nullable=False),
        sa.Column("evaluator", sa.Text(), nullable=False),
        sa.Column("agent_version_id", sa.UUID(), nullable=False),
        sa.Column("state", sa.Text(), server_default="due", nullable=False),
        sa.Column("max_per_hour", sa.Integer(), nullable=True),
        sa.Column("budget", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("judge_task_id", sa.UUID(), nullable=True),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("passed", sa.Boolean(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("created_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("submitted_at", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("task_id", "evaluator", name="evaluations_pkey"),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="evaluations_task_id_fkey", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["agent_version_id"], ["agent_versions.id"], name="evaluations_agent_version_id_fkey", ondelete="CASCADE"
        ),
        sa.CheckConstraint(f"state IN ({STATES})", name="state"),
        sa.CheckConstraint("(state = 'scored') = (score IS NOT NULL)", name="scored"),
        sa.CheckConstraint("score BETWEEN 0 AND 1", name="score"),
    )
    for state in ("due", "submitted"):
        op.create_index(
            f"evaluations_{state}_idx", "evaluations", ["task_id"], postgresql_where=sa.text(f"state = '{state}'")
        )
    op.create_index(
        "evaluations_unscored_idx",
        "evaluations",
        ["agent_version_id", "task_id"],
        postgresql_where=sa.text("state IN ('failed', 'skipped')"),
    )
    op.create_index("evaluations_rate_idx", "evaluations", ["agent_version_id", "evaluator", "submitted_at"])
    op.create_index(
        "evaluations_judge_idx", "evaluations", ["judge_task_id"], postgresql_where=sa.text("judge_task_id IS NOT NULL")
    )
    op.create_table(
        "evaluation_scores",
        sa.Column("agent_version_id", sa.UUID(), nullable=False),
        sa.Column("evaluator", sa.Text(), nullable=False),
        sa.Column("count", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("sum", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("squares", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("passed", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("judged", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("agent_version_id", "evaluator", name="evaluation_scores_pkey"),
        sa.ForeignKeyConstraint(
            ["agent_version_id"],
            ["agent_versions.id"],
            name="evaluation_scores_agent_version_id_fkey",
            ondelete="CASCADE",
        ),
    )


def downgrade() -> None:
    raise NotImplementedError("Restore a backup, or continue with this release.")
