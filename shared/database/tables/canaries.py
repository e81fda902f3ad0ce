"""Canaries of agent versions, and evaluations of the tasks of a version.

`shared/definitions/canaries.py` starts and ends canaries. Only the orchestrator writes the others.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Double, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from shared.database.tables.base import EMPTY_OBJECT, NOW, Base, created, new_id

ZERO = "0"


class Canary(Base):
    """A version that gets a share of an agent's new tasks, beside the active version, its baseline.

    Each share has a separate row: `changed` ends one and begins the next. It is in force while it has not ended and the
    baseline is the agent's active version.

    Attributes:
        share: in hundredths of a percent.
        max_failures: how much more of its tasks may fail than of the baseline's: 0.05 is five percentage points.
        max_cost: how much more a task may cost on average: 0.5 is half as much again.
        max_score_drop: how much lower the mean score of an evaluator may be.
        min_tasks: the number of tasks of both versions before which nothing is decided.
        looks: how often it was compared, by measure.
        reason: given by the person who started it, or of its end.
    """

    __tablename__ = "canaries"
    __table_args__ = (
        CheckConstraint("version_id <> baseline_id", name="versions"),
        CheckConstraint("share BETWEEN 1 AND 9999", name="share"),
        CheckConstraint("outcome IN ('completed', 'rolled_back', 'ended', 'changed')", name="outcome"),
        CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", name="ended"),
        Index("canaries_open_idx", "agent_id", unique=True, postgresql_where=text("ended_at IS NULL")),
        Index("canaries_baseline_idx", "baseline_id", postgresql_where=text("ended_at IS NULL")),
        Index("canaries_agent_idx", "agent_id", "id"),
    )

    id: Mapped[UUID] = new_id()
    agent_id: Mapped[UUID] = mapped_column(ForeignKey("agents.id", ondelete="CASCADE"))
    version_id: Mapped[UUID] = mapped_column(ForeignKey("agent_versions.id", ondelete="CASCADE"))
    baseline_id: Mapped[UUID] = mapped_column(ForeignKey("agent_versions.id", ondelete="CASCADE"))
    share: Mapped[int]
    max_failures: Mapped[float] = mapped_column(Double)
    max_cost: Mapped[float] = mapped_column(Double)
    max_score_drop: Mapped[float] = mapped_column(Double)
    min_tasks: Mapped[int]
    looks: Mapped[dict[str, Any]] = mapped_column(server_default=EMPTY_OBJECT)
    started_at: Mapped[datetime] = mapped_column(server_default=NOW)
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    reason: Mapped[str | None]


class CanarySample(Base):
    """What was counted of one side of a canary: the sums of a measure and of its squares over `count` tasks.

    Attributes:
        measure: `failures` (1 for a failed task), `cost` (dollars), or `score ` and the name of an evaluator.
    """

    __tablename__ = "canary_samples"

    canary_id: Mapped[UUID] = mapped_column(ForeignKey("canaries.id", ondelete="CASCADE"), primary_key=True)
    of_canary: Mapped[bool] = mapped_column(primary_key=True)
    measure: Mapped[str] = mapped_column(primary_key=True)
    count: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    sum: Mapped[float] = mapped_column(Double, server_default=ZERO)
    squares: Mapped[float] = mapped_column(Double, server_default=ZERO)


class Evaluation(Base):
    """A task that an evaluator judges: one row for each task and evaluator.

    Attributes:
        evaluator: the agent that judges.
        max_per_hour: submissions by this evaluator for the version in an hour; NULL: no bound.
        budget: of the judging task.
        judge_task_id: the judging task; its output has the reason of the score.
        problem: why there is no score.
    """

    __tablename__ = "evaluations"
    __table_args__ = (
        CheckConstraint("state IN ('due', 'submitted', 'scored', 'failed', 'skipped')", name="state"),
        CheckConstraint("(state = 'scored') = (score IS NOT NULL)", name="scored"),
        CheckConstraint("score BETWEEN 0 AND 1", name="score"),
        Index("evaluations_due_idx", "task_id", postgresql_where=text("state = 'due'")),
        Index("evaluations_submitted_idx", "task_id", postgresql_where=text("state = 'submitted'")),
        Index(
            "evaluations_unscored_idx",
            "agent_version_id",
            "task_id",
            postgresql_where=text("state IN ('failed', 'skipped')"),
        ),
        Index("evaluations_rate_idx", "agent_version_id", "evaluator", "submitted_at"),
        Index("evaluations_judge_idx", "judge_task_id", postgresql_where=text("judge_task_id IS NOT NULL")),
    )

    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    evaluator: Mapped[str] = mapped_column(primary_key=True)
    agent_version_id: Mapped[UUID] = mapped_column(ForeignKey("agent_versions.id", ondelete="CASCADE"))
    state: Mapped[str] = mapped_column(server_default="due")
    max_per_hour: Mapped[int | None]
    budget: Mapped[dict[str, Any] | None]
    judge_task_id: Mapped[UUID | None]
    score: Mapped[float | None] = mapped_column(Double)
    passed: Mapped[bool | None]
    problem: Mapped[str | None]
    created_at: Mapped[datetime] = created()
    submitted_at: Mapped[datetime | None]


class EvaluationScore(Base):
    """The scores of an agent version by one evaluator. They outlive the tasks.

    Attributes:
        passed: evaluations that the judge called passed, of `judged` that it called either.
    """

    __tablename__ = "evaluation_scores"

    agent_version_id: Mapped[UUID] = mapped_column(
        ForeignKey("agent_versions.id", ondelete="CASCADE"), primary_key=True
    )
    evaluator: Mapped[str] = mapped_column(primary_key=True)
    count: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    sum: Mapped[float] = mapped_column(Double, server_default=ZERO)
    squares: Mapped[float] = mapped_column(Double, server_default=ZERO)
    passed: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    judged: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
