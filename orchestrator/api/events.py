"""A task's events as they happen: server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response
from sqlalchemy import Engine
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from orchestrator.api import problems
from orchestrator.api.event_watch import EventWatch
from orchestrator.api.parameters import Statements, StrictQuery
from orchestrator.api.task_ids import TaskId
from orchestrator.task_events import StreamEvent, last_event
from shared.errors import InvalidInput
from shared.tasks.queries import no_such_task

HEARTBEAT_SECONDS = 15.0
RETRY_MILLISECONDS = 1000
MEDIA_TYPE = "text/event-stream"
# A buffering proxy would show everything at the end.
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
LARGEST_NUMBER = 2**31 - 1

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
    last, ended = await run_in_threadpool(_last_event, database, task_id)
    if after > last:
        raise InvalidInput(f"Task {task_id} has {last} events so far: none has the id {after} yet.")
    if ended and after == last:
        return Response(status_code=204)
    if request.scope.get("asked_for_head"):
        return Response(headers=HEADERS, media_type=MEDIA_TYPE)
    return StreamingResponse(_stream(request.app.state.event_watch, task_id, after), 200, HEADERS, MEDIA_TYPE)


def _last_event(database: Engine, task: UUID) -> tuple[int, bool]:
    with database.connect() as connection:
        found = last_event(connection, task)
    if found is None:
        raise no_such_task(task)
    return found


async def _stream(watch: EventWatch, task: UUID, after: int) -> AsyncIterator[str]:
    yield f"retry: {RETRY_MILLISECONDS}\n\n"
    with watch.following(task, after) as follower:
        async for event in follower.events(HEARTBEAT_SECONDS):
            yield ": nothing new\n\n" if event is None else _frame(event)


def _frame(event: StreamEvent) -> str:
    number = "" if event.number is None else f"id: {event.number}\n"
    return f"{number}event: {event.type}\ndata: {json.dumps(event.data)}\n\n"
