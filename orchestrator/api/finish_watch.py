"""Waiting for tasks to finish: one subscription and one database connection for all who wait in this process.

A hint over Redis wakes them at once. Hints may be lost and Redis may be away: once a second one query asks the
database about all tasks that somebody waits for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from uuid import UUID

import redis.asyncio
import structlog
from redis.exceptions import RedisError

from shared.database import make_engine, reason
from shared.hints import FINISHED
from shared.settings import Settings
from shared.tasks import ended

log = structlog.get_logger(__name__)

POLL_SECONDS = 1.0
LINGER_SECONDS = 30.0


class Expectation:
    """One caller's wait for one task."""

    def __init__(self) -> None:
        self.met = asyncio.Event()

    async def within(self, seconds: float) -> bool:
        """Waits until the task has ended, or the time is up. Returns whether it has."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.met.wait(), seconds)
        return self.met.is_set()


class FinishWatch:
    """Tells callers on the event loop that a task has ended."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._expected: dict[UUID, set[Expectation]] = {}
        self._somebody = asyncio.Event()
        self._last_needed = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._released = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watches while the block runs."""
        self._loop = asyncio.get_running_loop()
        self._engine = make_engine(self._settings, pool_size=1)
        self._thread = ThreadPoolExecutor(1, "finish-watch")
        watchers = [asyncio.create_task(self._poll()), asyncio.create_task(self._listen())]
        try:
            yield
        finally:
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
            self._thread.shutdown()
            self._engine.dispose()

    @contextmanager
    def expecting(self, task: UUID) -> Iterator[Expectation]:
        """Begins to watch a task. Look at the task once inside the block: it may have ended before it."""
        expectation = Expectation()
        if self._released:
            expectation.met.set()
        self._expected.setdefault(task, set()).add(expectation)
        self._somebody.set()
        try:
            yield expectation
        finally:
            self._forget(task, expectation)

    def release(self) -> None:
        """Ends all waits, now and from now on, so that a server that shuts down is not held up. Any thread may call."""
        self._released = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(lambda: self._announce(list(self._expected)))

    def _forget(self, task: UUID, expectation: Expectation) -> None:
        self._expected[task].discard(expectation)
        if not self._expected[task]:
            del self._expected[task]
        if not self._expected:
            self._somebody.clear()

    def _announce(self, tasks: Iterable[UUID]) -> None:
        for task in tasks:
            for expectation in self._expected.get(task, ()):
                expectation.met.set()

    async def _poll(self) -> None:
        while True:
            await self._somebody.wait()
            try:
                asking = asyncio.get_running_loop().run_in_executor(self._thread, self._ask, list(self._expected))
                self._announce(await asking)
            except Exception as error:  # whatever it is, those who wait must be asked for again
                log.warning("finish_poll_failed", reason=reason(error))
            await asyncio.sleep(POLL_SECONDS)

    def _ask(self, tasks: list[UUID]) -> set[UUID]:
        with self._engine.connect() as connection:
            return ended(connection, tasks)

    async def _listen(self) -> None:
        while True:
            await self._somebody.wait()
            try:
                await self._subscribe()
            except (RedisError, OSError) as error:
                log.info("finish_hints_away", reason=str(error))
                await asyncio.sleep(POLL_SECONDS)

    async def _subscribe(self) -> None:
        """Passes hints on while somebody waits, and for a while after: a connection for each wait would be dear."""
        url = self._settings.require_redis_url()
        client = redis.asyncio.Redis.from_url(url, socket_connect_timeout=2.0, retry=None, health_check_interval=10)
        async with client, client.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(FINISHED)
            while self._needed():
                message = await channel.get_message(timeout=POLL_SECONDS)
                if message is not None:
                    self._announce(_named_in(message["data"]))

    def _needed(self) -> bool:
        now = asyncio.get_running_loop().time()
        if self._expected:
            self._last_needed = now
        return now - self._last_needed < LINGER_SECONDS


def _named_in(hint: bytes) -> list[UUID]:
    """The task that a hint names; anybody may publish anything."""
    with suppress(ValueError):
        return [UUID(hint.decode())]
    return []
