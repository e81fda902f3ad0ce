"""A message of the orchestrator, from its arrival in a process to the report for Celery's monitors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID

import structlog

from shared.broker import MESSAGE_VERSION
from workers import minion, monitoring
from workers.meter import Meter

log = structlog.get_logger(__name__)


def execute(
    v: int,
    task_id: str,
    claim: int,
    worker_id: UUID,
    limits: Sequence[float] | None,
    measure: Callable[[], Meter] = Meter,
) -> str:
    """Handle a message `{v, task_id, claim}`. Return the report for Celery's monitors.

    Args:
        worker_id: this worker's row.
        limits: the hard and the soft time limit of this run, in seconds; None if none apply.
        measure: makes the meter of this run's costs.
    """
    task = UUID(task_id)
    if v > MESSAGE_VERSION:
        # The task stays queued in PostgreSQL and is published again; a newer minion will take it.
        log.warning("message_of_a_later_release", v=v, task=task_id)
        return monitoring.report(task, claim, "skipped")
    return monitoring.report(task, claim, minion.run(task, claim, worker_id, limits, measure))
