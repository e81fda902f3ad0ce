"""Task ids in paths and filters: full ids, or unambiguous prefixes."""

from __future__ import annotations

import re
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Path
from pydantic import AfterValidator
from sqlalchemy import Connection, Engine
from starlette.concurrency import run_in_threadpool

from orchestrator.api.parameters import Statements
from shared.tasks.queries import find_task

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


def task_id_of(connection: Connection, digits: str) -> UUID:
    """Return the task that a reference names; a full id may belong to no task.

    Raises:
        NotFound, AmbiguousId: see `find_task`.
    """
    return UUID(digits) if len(digits) == WHOLE else find_task(connection, digits)


async def _of_path(
    task_id: Annotated[TaskRef, Path(description=WRITTEN, examples=[EXAMPLE])], database: Statements
) -> UUID:
    return UUID(task_id) if len(task_id) == WHOLE else await run_in_threadpool(_find, database, task_id)


def _find(database: Engine, digits: str) -> UUID:
    with database.connect() as connection:
        return find_task(connection, digits)


TaskId = Annotated[UUID, Depends(_of_path)]
"""The task named in the path."""
