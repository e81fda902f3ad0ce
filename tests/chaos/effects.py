"""The builtin tool of the fault tests: an effect that is committed together with the fence check.

Every call is counted first, with or without the fence (`chaos_calls`): any worker can promise that much, at least
once. The effect itself (`chaos_effects`) is one transaction that holds the task's fence and uses the idempotency key:
exactly once.
"""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

from sqlalchemy import text
from structlog.contextvars import get_contextvars

from shared.database.connections import persist, statement

CALLED = text(
    "INSERT INTO chaos_calls (id, task_id, claim, key) VALUES (:id, CAST(:task AS uuid), :claim, :key) "
    "ON CONFLICT DO NOTHING"
)
COMMIT = text("SELECT chaos_commit(CAST(:task AS uuid), :claim, :key)")


def commit(arguments: dict[str, Any], context: Any) -> dict[str, Any]:
    """Work for `seconds`, commit the effect if the claim still holds the task, and make the task wait for `wait`."""
    claim = get_contextvars()["claim"]  # as the worker's log shows it
    call = {"id": uuid4(), "task": context.task_id, "claim": claim, "key": context.idempotency_key}
    persist(lambda: _execute(CALLED, call))
    time.sleep(arguments["seconds"])
    committed = {"committed": persist(lambda: _execute(COMMIT, call))}
    return {"$wait": {"seconds": arguments["wait"]}} if "wait" in arguments else committed


def _execute(what: Any, values: dict[str, Any]) -> Any:
    with statement() as connection:
        result = connection.execute(what, values)
        return result.scalar() if result.returns_rows else None
