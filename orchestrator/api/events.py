"""A task's events as they happen: server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from orchestrator.api import masking, problems
from orchestrator.api.auth import CHECK_SECONDS, check_again
from orchestrator.api.event_watch import EventWatch
from orchestrator.api.parameters import Statements, StrictQuery
from orchestrator.api.task_ids import TaskId
from orchestrator.task_events import StreamEvent, last_event
from shared.errors import InvalidInput, MinionError
from shared.tasks.queries import no_such_task

HEARTBEAT_SECONDS = 15.0
RETRY_MILLISECONDS = 1000
MEDIA_TYPE = "text/event-stream"
# A buffering proxy would show everything at the end.
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
LARGEST_NUMBER = 2**31 - 1
MASKED: dict[str, Callable[[Any], Any]] = {
    "input": masking.payload,
    "output": masking.payload,
    "error": masking.error,
}
"""The members of an event that may hold payloads."""

router = APIRouter(prefix="/v1/tasks", tags=["tasks"])

LastEventId = Annotated[
    int | None,
    Header(
        ge=0, le=LARGEST_NUMBER, description="The id of the last event that was read; takes precedence over `after`."
    ),
]


class EventsQuery(StrictQuery):
    """Start position."""

    after: int = Query(0, ge=0, le=LARGEST_NUMBER, description="The id of the last event that was read.")


@router.get(
    "/{task_id}/events",
    response_class=StreamingResponse,
    responses={
        200: {"content": {MEDIA_TYPE: {"schema": {"type": "string"}}}, "description": "Events, as they happen"},
        204: {"description": "The task has ended, and all of its events were read"},
        **problems.documented(404),
    },
)
async def follow_task(
    task_id: TaskId,
    query: Annotated[EventsQuery, Query()],
    request: Request,
    database: Statements,
    last_event_id: LastEventId = None,
) -> Response:
    """Stream the events of the task until it ends: `event` is the type, `id` a number that counts from 1, `data` JSON.
    Streamed text (`step.text`) has no id and is not sent again."""
    after = query.after if last_event_id is None else last_event_id
    last, ended = await run_in_threadpool(last_event_of, database, task_id)
    if after > last:
        raise InvalidInput(f"Task {task_id} has {last} events so far: none has the id {after} yet.")
    if ended and after == last:
        return Response(status_code=204)
    if request.scope.get("asked_for_head"):
        return Response(headers=HEADERS, media_type=MEDIA_TYPE)
    return StreamingResponse(_stream(request, task_id, after), 200, HEADERS, MEDIA_TYPE)


def last_event_of(database: Engine, task: UUID) -> tuple[int, bool]:
    """Return the number of a task's latest event, and whether it is the last one.

    Raises:
        NotFound: there is no such task.
    """
    with database.connect() as connection:
        found = last_event(connection, task)
    if found is None:
        raise no_such_task(task)
    return found


async def _stream(request: Request, task: UUID, after: int) -> AsyncIterator[str]:
    """Yield the events of a task until its end, or until the key is no longer valid."""
    watch: EventWatch = request.app.state.event_watch
    yield f"retry: {RETRY_MILLISECONDS}\n\n"
    idle = 0.0
    with watch.following(task, after) as follower:
        async for event in follower.events(CHECK_SECONDS):
            if not await is_still_valid(request):
                return
            idle = 0.0 if event else idle + CHECK_SECONDS
            if event is not None:
                # Of streamed text, masks would be all that is left.
                if event.number is not None or masking.are_shown():
                    yield _frame(event)
            elif idle >= HEARTBEAT_SECONDS:
                idle = 0.0
                yield ": nothing new\n\n"


async def is_still_valid(request: Request) -> bool:
    """Return whether the key of a stream is still valid."""
    try:
        await check_again(request)
    except (MinionError, SQLAlchemyError):
        # The client connects again, and receives the reason of the refusal.
        return False
    return True


def _frame(event: StreamEvent) -> str:
    number = "" if event.number is None else f"id: {event.number}\n"
    data = {name: MASKED[name](value) if name in MASKED else value for name, value in event.data.items()}
    return f"{number}event: {event.type}\ndata: {json.dumps(data)}\n\n"
