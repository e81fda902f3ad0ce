"""The time limits of a task come from its agent's version, whatever a message says.

Celery reads a claim's limits from the message before PostgreSQL has been asked. A forged message may therefore carry
its own: too long, or so short that a legitimate claim seems to have overrun. So the child compares them once it holds
the claim, and the main process checks the record before it charges a claim that it has killed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from uuid import UUID

from sqlalchemy import Connection, text

from shared.database.connections import persist, statement

LIMITS = text("SELECT time_limit, soft_time_limit FROM agent_versions WHERE id = :version")
# Half of the hard limit, whose clock starts before the claim; or the soft limit, which may strike outside the task.
OVERRAN = text(
    "SELECT now() - e.started_at > LEAST(v.time_limit * 0.5, v.soft_time_limit) * interval '1 s' "
    "FROM executions e JOIN tasks t ON t.id = e.task_id JOIN agent_versions v ON v.id = t.agent_version_id "
    "WHERE e.task_id = :task AND e.claim = :claim"
)


def are_of(version: UUID, limits: Sequence[float]) -> bool:
    """Return whether the hard and the soft limit of a message are those of an agent's version, in seconds."""
    return tuple(limits) == persist(lambda: _limits(version))


@lru_cache(maxsize=1024)
def _limits(version: UUID) -> tuple[int, int]:
    with statement() as connection:
        found = connection.execute(LIMITS, {"version": version}).one()
        return found.time_limit, found.soft_time_limit


def overran(connection: Connection, task: UUID, claim: int) -> bool:
    """Return whether a claim has run long enough for its hard limit to have ended it."""
    return bool(connection.scalar(OVERRAN, {"task": task, "claim": claim}))
