"""Claiming a task, subject to the pauses and limits that currently apply to it."""

from __future__ import annotations

from functools import lru_cache
from uuid import UUID

import structlog

from shared.database.connections import persistently
from shared.errors import Unavailable
from shared.notifications import make_redis
from shared.tasks import lifecycle
from shared.tasks.records import Obstacle
from workers.limiter import Bucket, Limiter, Verdict
from workers.task import ClaimedTask

log = structlog.get_logger(__name__)

LIMITER_AWAY_SECONDS = 1.0


def claim_task(task_id: UUID, claim: int, worker_id: UUID) -> ClaimedTask | None:
    """Claim the task if it is available and may start now. A task that may not start returns to the queue.

    Args:
        claim: the claim number that the message was sent under.
        worker_id: this worker's row.
    """
    row = persistently(lifecycle.claim, task_id, claim, worker_id, granted=False)
    if row and "refused" in row and row["refused"]["kind"] == "rate":
        if not _is_permitted(row["refused"], task_id, claim):
            return None
        row = persistently(lifecycle.claim, task_id, claim, worker_id, granted=True)
    if row is None:
        log.info("skipped", why="already claimed, ended, or the worker is not registered")
        return None
    if "refused" in row:
        log.info("skipped", why="it may not start now", **{f"by_{name}": fact for name, fact in row["refused"].items()})
        return None
    return ClaimedTask.of(row)


def _is_permitted(refused: Obstacle, task_id: UUID, claim: int) -> bool:
    """Ask the limiter. On refusal, no task of the rate-limited scope is dispatched before the limit has room again."""
    scopes = {f"task:{refused['namespace']}:{rule['scope']}:{rule['name']}": rule for rule in refused["rates"]}
    verdict = _ask([Bucket(name, rule["rate"], rule["period_seconds"]) for name, rule in scopes.items()])
    if verdict.granted:
        return True
    rule = scopes.get(verdict.blocking or "", refused["rates"][0])
    persistently(lifecycle.hold, task_id, claim, scope=rule["scope"], name=rule["name"], delay=verdict.wait)
    log.info("held", scope=rule["scope"], name=rule["name"], seconds=round(verdict.wait, 3))
    return False


def _ask(buckets: list[Bucket]) -> Verdict:
    try:
        return _limiter().acquire(buckets)
    except Unavailable as error:
        log.warning("limiter_away", reason=error.message)
        return Verdict(False, LIMITER_AWAY_SECONDS)


@lru_cache(maxsize=1)
def _limiter() -> Limiter:
    return Limiter(make_redis())


def forget_limiter() -> None:
    """Drop the parent's connection in a forked child, which must not use it."""
    _limiter.cache_clear()
