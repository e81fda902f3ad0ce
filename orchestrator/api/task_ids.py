"""Task ids in paths and filters: full ids, or unambiguous prefixes."""

from __future__ import annotations

import re
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Path
from pydantic import AfterValidator
from sqlalchemy import Connection, Engine
from starlette.concurrency import run_in_threadpool

from orchestrator.api.auth import Caller
from orchestrator.api.parameters import Statements
from shared.access.scope import Scope
from shared.errors import NotFound
from shared.tasks.queries import find_task, no_such_task, reached

WHOLE = 32  # hexadecimal digits
SHORTEST = 8
EXAMPLE = "01a1c9a4-6d3e-7c52-9b1f-2f8d5e0c7a41"
DIGITS = re.compile(f"[0-9a-f]{{{SHORTEST},{WHOLE}}}")
WRITTEN = f"A task's id, or at least its first {SHORTEST} characters, if no other task has them."


def digits_of(written: str, *, what: str = "task") -> str:
    """Return the hexadecimal digits of an id, or of its beginning.

    Raises:
        ValueError: it is neither.
    """
    digits = written.lower().replace("-", "")
    if not DIGITS.fullmatch(digits):
        raise ValueError(
            f"{written[:50]!r} is not the id of a {what}: it must be a whole id, or at least its first {SHORTEST} "
            "hexadecimal digits"
        )
    return digits


TaskRef = Annotated[str, AfterValidator(digits_of)]


def task_id_of(connection: Connection, digits: str, scope: Scope) -> UUID:
    """Return the task that a reference names, among those that a scope reaches; a full id may belong to no task.

    Raises:
        NotFound, AmbiguousId: see `find_task`.
    """
    return UUID(digits) if len(digits) == WHOLE else find_task(connection, digits, within=reached(scope))


def check_reached(connection: Connection, task: UUID, scope: Scope) -> None:
    """Refuse a task outside the scope as one that does not exist.

    Raises:
        NotFound: the scope does not reach it, or there is no such task.
    """
    if not is_reached(connection, task, scope):
        raise no_such_task(task)


def is_reached(connection: Connection, task: UUID, scope: Scope) -> bool:
    """Return whether a scope reaches a task. The whole installation reaches any id."""
    if scope.is_whole:
        return True
    try:
        find_task(connection, task.hex, within=reached(scope))
    except NotFound:
        return False
    return True


async def _of_path(
    task_id: Annotated[TaskRef, Path(description=WRITTEN, examples=[EXAMPLE])], database: Statements, key: Caller
) -> UUID:
    if len(task_id) == WHOLE and key.scope.is_whole:
        return UUID(task_id)
    return await run_in_threadpool(_find, database, task_id, key.scope)


def _find(database: Engine, digits: str, scope: Scope) -> UUID:
    with database.connect() as connection:
        task = task_id_of(connection, digits, scope)
        if len(digits) == WHOLE:
            check_reached(connection, task, scope)
        return task


TaskId = Annotated[UUID, Depends(_of_path)]
"""The task named in the path."""
