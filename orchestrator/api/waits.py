"""Waiting for the ends of tasks over HTTP: of one, and of many in one request."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from orchestrator.api import body, problems
from orchestrator.api.auth import CHECK_SECONDS, Caller, check_again
from orchestrator.api.finish_watch import Expectation, FinishWatch
from orchestrator.api.parameters import Statements
from orchestrator.api.task_models import Task
from shared.access.scope import Scope
from shared.tasks import queries
from shared.tasks.states import FINAL, State

LONGEST_WAIT = 60
MOST_TASKS = 1000

router = APIRouter(prefix="/v1/tasks", tags=["tasks"])


class WaitRequest(BaseModel):
    """The tasks to wait for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    ids: list[Annotated[UUID, Field(strict=False)]] = Field(
        min_length=1, max_length=MOST_TASKS, description="Whole ids. An id that is given twice counts once."
    )
    until: Literal["all", "any"] = Field(
        "all", description="Whether the answer comes when all of them have ended, or as soon as any has."
    )
    wait: float = Field(0, ge=0, le=LONGEST_WAIT, description="Seconds to wait.")


class Waited(BaseModel):
    """The tasks that have ended, in the order of the request, and the ids of the others."""

    ended: list[Task] = Field(description="At most 8 MB, but at least one if any has ended.")
    left: list[UUID] = Field(description="Ask for these again: they have not ended, or did not fit into this answer.")


@router.post(
    "/wait",
    response_model=Waited,
    responses=problems.documented(404, 413, 415),
    openapi_extra=body.documented(WaitRequest.model_json_schema()),
)
async def wait_for_tasks(sent: body.SmallBody, request: Request, database: Statements, key: Caller) -> dict[str, Any]:
    """Waits for up to 1,000 tasks at once. The answer comes when they have ended, or when the time is up, and has those
    that have ended by then."""
    asked = body.parse_model(WaitRequest, sent)
    tasks = list(dict.fromkeys(asked.ids))
    states = await run_in_threadpool(_states, database, tasks, key.scope)
    unfinished = [task for task in tasks if states[task] not in FINAL]
    enough = not unfinished if asked.until == "all" else len(unfinished) < len(tasks)
    if asked.wait and not enough:
        watch: FinishWatch = request.app.state.finish_watch
        with watch.expecting_many(unfinished, first=asked.until == "any") as expectation:
            await wait_within(asked.wait, expectation, request)
    ended = await run_in_threadpool(_load_ended, database, tasks)
    returned = {task["id"] for task in ended}
    return {"ended": ended, "left": [task for task in tasks if task not in returned]}


async def wait_within(seconds: float, expectation: Expectation, request: Request) -> None:
    """Wait until an expectation is met, or the time is up.

    Raises:
        Unauthorized: the key of the request is no longer valid.
    """
    while not await expectation.within(min(seconds, CHECK_SECONDS)) and seconds > CHECK_SECONDS:
        seconds -= CHECK_SECONDS
        with suppress(SQLAlchemyError):  # known again when the wait ends, or the answer is 503
            await check_again(request)
    await check_again(request)


def _states(database: Engine, tasks: Sequence[UUID], scope: Scope) -> dict[UUID, State]:
    with database.connect() as connection:
        return queries.states_of(connection, tasks, within=queries.reached(scope))


def _load_ended(database: Engine, tasks: Sequence[UUID]) -> list[dict[str, Any]]:
    with database.connect() as connection:
        return queries.load_ended(connection, tasks)
