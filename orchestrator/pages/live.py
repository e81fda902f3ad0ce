"""Live updates: a stream tells an open page that it has changed, and the page asks for its parts again.

The parts come from the page's own address, so rights and masks are those of the page. All streams of a process share
one look at the database a second, and the more there are, the less often each page is asked to renew itself.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any
from uuid import UUID

import structlog
from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import Connection, text
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from orchestrator.api.auth import CHECK_SECONDS
from orchestrator.api.event_watch import EventWatch
from orchestrator.api.events import HEADERS, HEARTBEAT_SECONDS, MEDIA_TYPE, is_still_valid, last_event_of
from orchestrator.api.task_ids import TaskId
from orchestrator.api.watching import Watching
from orchestrator.pages.access import Reading
from orchestrator.pages.rendering import Page
from shared.access.actors import Key
from shared.database.connections import reason
from shared.errors import Unavailable

log = structlog.get_logger(__name__)

MOST_STREAMS = 200
MOST_OF_A_LOGIN = 20
RENEWALS_PER_SECOND = 5.0
"""Of all pages of a process together."""
POLL_SECONDS = 1.0
LARGEST_NUMBER = 2**31 - 1
CHANGED = "event: changed\ndata:\n\n"
OVER = "event: over\ndata:\n\n"
# What the server counts for itself: no table is read. A count may be ten seconds late.
CHANGES = text(
    "SELECT sum(pg_stat_get_tuples_inserted(c) + pg_stat_get_tuples_updated(c) + pg_stat_get_tuples_deleted(c)) "
    "FROM unnest('{task_status,pauses,limits,stops,statistics_state,workers,alerts,bulk_acts,"
    "error_states,schedules,webhooks,webhook_deliveries}'::regclass[]) AS c"
)

router = APIRouter(route_class=Page, include_in_schema=False)


class Streams:
    """The streams of this process, and the look at the database that those of lists share. For one event loop."""

    def __init__(self, watching: Watching) -> None:
        self._watching = watching
        self._open: Counter[UUID | None] = Counter()
        self._lists = 0
        self._renewed_until = 0.0
        self._seen: Any = None
        self._version = 0
        self._wanted = asyncio.Event()
        self._changed = asyncio.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._released = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look while the block runs."""
        self._loop = asyncio.get_running_loop()
        looking = asyncio.create_task(self._look())
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    @contextmanager
    def opened(self, key: Key) -> Iterator[None]:
        """Count a stream of a login while the block runs."""
        self._open[key.login] += 1
        try:
            yield
        finally:
            self._open -= Counter([key.login])  # and forget a login without streams

    def check(self, key: Key) -> None:
        """Check that a login may open another stream.

        Raises:
            Unavailable: there are too many.
        """
        if self._open.total() >= MOST_STREAMS or self._open[key.login] >= MOST_OF_A_LOGIN:
            raise Unavailable("Too many pages are open. Close some, or reload this one to see what has changed.")

    @property
    def interval(self) -> float:
        """Seconds between two updates of a page, so that all pages together cost a bounded share."""
        return max(1.0, self._open.total() / RENEWALS_PER_SECOND)

    def may_renew(self, now: float) -> bool:
        """Return whether a page may renew itself now, and count it: after a quiet time, all would at once.

        Args:
            now: seconds on the event loop's clock.
        """
        self._renewed_until = max(self._renewed_until, now - 1)
        if self._renewed_until >= now:
            return False
        self._renewed_until += 1 / RENEWALS_PER_SECOND
        return True

    async def changes(self) -> AsyncIterator[bool]:
        """Yield once every second, and whether anything has changed since the last time."""
        seen = -1
        self._lists += 1
        self._wanted.set()
        try:
            while not self._released:
                yield self._version != seen
                seen = self._version
                async with self._changed:
                    await self._changed.wait()
        finally:
            self._lists -= 1

    def release(self) -> None:
        """End all streams, now and from now on, so that they do not delay a shutdown. May be called from any thread."""
        self._released = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wanted.set)

    async def _look(self) -> None:
        while True:
            if not self._lists:
                self._wanted.clear()
                await self._wanted.wait()
            try:
                changes = await self._watching.ask(_changes, None)
                self._version += changes != self._seen
                self._seen = changes
            except Exception as error:  # after any error, the pages must be notified later
                log.warning("pages_poll_failed", reason=reason(error))
            async with self._changed:
                self._changed.notify_all()
            await asyncio.sleep(0 if self._released else POLL_SECONDS)


@router.get("/overview/live")
@router.get("/tasks/live")
@router.get("/inbox/live")
@router.get("/limits/live")
@router.get("/alerts/live")
@router.get("/errors/live")
@router.get("/capabilities/live")
@router.get("/workers/live")
@router.get("/bulk-acts/live")
@router.get("/live/schedules")  # one may have the name `live`
@router.get("/live/webhooks")
async def follow_all(request: Request) -> Response:
    """Streams the changes of a page about many tasks."""
    streams: Streams = request.app.state.streams
    streams.check(request.state.key)
    return _answer(request, _of_all(request, streams))


@router.get("/tasks/{task_id}/live")
async def follow_task(
    task_id: TaskId,
    request: Request,
    database: Reading,
    after: Annotated[int, Query(ge=0, le=LARGEST_NUMBER)] = 0,
) -> Response:
    """Streams the changes of a task after the event of that number, until it ends."""
    streams: Streams = request.app.state.streams
    streams.check(request.state.key)
    last, ended = await run_in_threadpool(last_event_of, database, task_id)
    if ended and after >= last:
        return Response(status_code=204)
    return _answer(request, _of_task(request, streams, task_id, min(after, last)))


def _answer(request: Request, events: AsyncIterator[str]) -> Response:
    if request.scope.get("asked_for_head"):
        return Response(headers=HEADERS, media_type=MEDIA_TYPE)
    return StreamingResponse(events, 200, HEADERS, MEDIA_TYPE)


async def _of_all(request: Request, streams: Streams) -> AsyncIterator[str]:
    pace = _Pace(streams)
    with streams.opened(request.state.key):
        yield "retry: 5000\n\n"
        async for changed in streams.changes():
            if not await is_still_valid(request):
                return
            if (said := pace.next(changed)) is not None:
                yield said


async def _of_task(request: Request, streams: Streams, task: UUID, after: int) -> AsyncIterator[str]:
    watch: EventWatch = request.app.state.event_watch
    pace = _Pace(streams)
    with streams.opened(request.state.key), watch.following(task, after) as follower:
        yield "retry: 5000\n\n"
        async for event in follower.events(CHECK_SECONDS):
            if not await is_still_valid(request):
                return
            if event is not None and event.final:
                yield CHANGED
                yield OVER
                return
            # Streamed text is not part of the page.
            if (said := pace.next(event is not None and event.number is not None)) is not None:
                yield said


class _Pace:
    """Joins changes, so that a page hears of them once in an interval."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._pending = False
        self._said_at = 0.0

    def next(self, changed: bool) -> str | None:
        """Return what to send now."""
        now = asyncio.get_running_loop().time()
        self._pending |= changed
        if self._pending and now - self._said_at >= self._streams.interval and self._streams.may_renew(now):
            self._pending, self._said_at = False, now
            return CHANGED
        if now - self._said_at >= max(HEARTBEAT_SECONDS, self._streams.interval):
            self._said_at = now
            return ": nothing new\n\n"
        return None


def _changes(connection: Connection, question: None) -> int | None:
    changes: int | None = connection.scalar(CHANGES)
    return changes
