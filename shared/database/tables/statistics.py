"""Statistics: what was counted from ended work, and how far; and how far it was exported as traces.

Only the orchestrator's `orchestrator.observe` and `orchestrator.tracing` write them, never a task's transaction. They
outlive their tasks.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Double, ForeignKey, Index, SmallInteger, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from shared.database.tables.base import NOW, Base

NO_COUNTS = text("'{}'::bigint[]")


def dimension() -> Mapped[str]:
    """Column for a part of a row's key; empty where it has no meaning."""
    return mapped_column(primary_key=True, server_default="")


def amount() -> Mapped[int]:
    """Column for a sum."""
    return mapped_column(BigInteger, server_default="0")


class RetriedStep(Base):
    """An end of a step that a retry has overwritten, until it is counted."""

    __tablename__ = "retried_steps"
    __table_args__ = (Index("retried_steps_ended_in_idx", "ended_in"),)

    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    ended_in: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    claim: Mapped[int]
    kind: Mapped[str]
    name: Mapped[str]
    status: Mapped[str]
    usage: Mapped[dict[str, Any] | None]
    cost_microdollars: Mapped[int] = mapped_column(BigInteger)
    function_version_id: Mapped[UUID | None]
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]


class Statistic(Base):
    """Sums over ended work of one kind in an hour, a day, or since counting began.

    `runs` and `waits` are histograms: `orchestrator.observe.histogram` has their bounds. `folded`: the row sums up what
    has no separate row, because its bucket has too many.
    """

    __tablename__ = "statistics"
    __table_args__ = (
        CheckConstraint("grain IN ('total', 'hour', 'day')", name="grain"),
        CheckConstraint("kind IN ('task', 'failure', 'execution', 'step', 'security', 'webhook')", name="kind"),
    )

    grain: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    bucket: Mapped[datetime] = mapped_column(primary_key=True)
    namespace: Mapped[str] = mapped_column(primary_key=True)
    agent: Mapped[str] = dimension()
    version: Mapped[int] = mapped_column(primary_key=True, server_default="0", autoincrement=False)
    capability: Mapped[str] = dimension()
    tenant: Mapped[str] = dimension()
    outcome: Mapped[str] = dimension()
    step: Mapped[str] = dimension()
    name: Mapped[str] = dimension()
    function: Mapped[str] = dimension()
    folded: Mapped[bool] = mapped_column(primary_key=True, server_default=text("false"))
    count: Mapped[int] = amount()
    microdollars: Mapped[int] = amount()
    saved_microdollars: Mapped[int] = amount()
    saved_steps: Mapped[int] = amount()
    input_tokens: Mapped[int] = amount()
    output_tokens: Mapped[int] = amount()
    cache_read_tokens: Mapped[int] = amount()
    cache_write_tokens: Mapped[int] = amount()
    cached: Mapped[int] = amount()
    run_seconds: Mapped[float] = mapped_column(Double, server_default="0")
    wait_seconds: Mapped[float] = mapped_column(Double, server_default="0")
    runs: Mapped[list[int]] = mapped_column(ARRAY(BigInteger), server_default=NO_COUNTS)
    waits: Mapped[list[int]] = mapped_column(ARRAY(BigInteger), server_default=NO_COUNTS)


class StatisticsState(Base):
    """The state of counting, one row: ends of all transactions below a number are counted; and the latest gauges.

    All that had ended at `counted_at` is counted. At `marked_at` all transactions had numbers below `marked_below`:
    when those are counted, `counted_at` moves there. All that is counted had ended at `moved_at`. `cluster`: whose
    transactions have these numbers, null if it is unknown.
    """

    __tablename__ = "statistics_state"
    __table_args__ = (CheckConstraint("id = 1", name="one"),)

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, server_default="1", autoincrement=False)
    counted_below: Mapped[int] = mapped_column(BigInteger, server_default="0")
    counted_at: Mapped[datetime] = mapped_column(server_default=NOW)
    moved_at: Mapped[datetime] = mapped_column(server_default=NOW)
    cluster: Mapped[int | None] = mapped_column(BigInteger)
    marked_below: Mapped[int] = mapped_column(BigInteger, server_default="0")
    marked_at: Mapped[datetime] = mapped_column(server_default=NOW)
    gauges: Mapped[dict[str, Any] | None]
    gauges_at: Mapped[datetime | None]


class TracingState(Base):
    """The state of the export of traces, one row: ends of all transactions below a number are exported.

    `exported_at`: when the number was last moved. `since`: after a restore, the `exported_at` of the other server; what
    had ended by then is not exported. `cluster`: see `StatisticsState`. `seen_at`: when an orchestrator that exports
    last said so. The counts are of spans: accepted by the endpoint, refused by it, deleted before they were exported.
    """

    __tablename__ = "tracing_state"
    __table_args__ = (CheckConstraint("id = 1", name="one"),)

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, server_default="1", autoincrement=False)
    exported_below: Mapped[int] = mapped_column(BigInteger)
    exported_at: Mapped[datetime] = mapped_column(server_default=NOW)
    since: Mapped[datetime | None]
    cluster: Mapped[int | None] = mapped_column(BigInteger)
    seen_at: Mapped[datetime] = mapped_column(server_default=NOW)
    exported: Mapped[int] = amount()
    refused: Mapped[int] = amount()
    pruned: Mapped[int] = amount()
