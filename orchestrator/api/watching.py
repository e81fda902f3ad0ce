"""Resources that all waiting requests of this process share: a subscription and a database connection."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar
from uuid import UUID

import redis.asyncio
import structlog
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError
from sqlalchemy import Connection

from shared.database.connections import autocommit, make_engine
from shared.settings import Settings

log = structlog.get_logger(__name__)

POLL_SECONDS = 1.0
"""Interval of database queries even without notifications, which may be lost while Redis is unavailable."""
LINGER_SECONDS = 30.0
"""Time for which a channel without listeners stays subscribed: a subscription per wait would be expensive."""

Listener = Callable[[str, bytes | None], None]
Question = TypeVar("Question")
Answer = TypeVar("Answer")


class Watching:
    """Receives notifications and queries the database for all waiters on the event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._listeners: dict[str, Counter[Listener]] = {}
        self._lingering: dict[str, float] = {}
        self._subscribed: set[str] = set()
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen while the block runs."""
        self._engine = autocommit(make_engine(self._settings, pool_size=1))
        self._thread = ThreadPoolExecutor(1, "watching")
        listening = asyncio.create_task(self._listen())
        try:
            yield
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            self._thread.shutdown()
            self._engine.dispose()

    async def ask(self, query: Callable[[Connection, Question], Answer], question: Question) -> Answer:
        """Query the database, one question at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._ask, query, question)

    def hears(self, channel: str) -> bool:
        """Return whether the channel is subscribed. If that is lost, its listeners receive None once it is again."""
        return channel in self._subscribed

    @contextmanager
    def listening(self, channel: str, listener: Listener) -> Iterator[None]:
        """Call `listener` with the channel and each message, once even if it is registered several times.

        None in place of a message: the channel is subscribed from now on. Earlier messages may have been missed.
        """
        if channel not in self._listeners:
            self._listeners[channel] = Counter()
            self._changed.set()
        self._lingering.pop(channel, None)
        listeners = self._listeners[channel]
        listeners[listener] += 1
        try:
            yield
        finally:
            listeners[listener] -= 1
            if not +listeners:
                self._lingering[channel] = asyncio.get_running_loop().time() + LINGER_SECONDS

    def _ask(self, query: Callable[[Connection, Question], Answer], question: Question) -> Answer:
        with self._engine.connect() as connection:
            return query(connection, question)

    async def _listen(self) -> None:
        while True:
            if not self._listeners:
                await self._changed.wait()
            self._changed.clear()
            try:
                await self._subscribe()
            except (RedisError, OSError) as error:
                log.info("hints_away", reason=str(error))
                await asyncio.sleep(POLL_SECONDS)
                self._forget_unwanted()

    async def _subscribe(self) -> None:
        """Pass notifications on until no channel has listeners."""
        url = self._settings.require_redis_url()
        client = redis.asyncio.Redis.from_url(url, socket_connect_timeout=2.0, retry=None, health_check_interval=10)
        async with client, client.pubsub() as subscription:
            await subscription.subscribe(*self._listeners)
            adding = asyncio.create_task(self._add_channels(subscription))
            try:
                while self._listeners and not adding.done():
                    message = await subscription.get_message(timeout=POLL_SECONDS)
                    if message is not None:
                        self._pass_on(message)
                    for channel in self._forget_unwanted():
                        await subscription.unsubscribe(channel)
                if adding.done():
                    adding.result()
            finally:
                self._subscribed.clear()
                adding.cancel()
                with suppress(asyncio.CancelledError, RedisError, OSError):
                    await adding

    async def _add_channels(self, subscription: PubSub) -> None:
        """Add channels concurrently with the reader, which may wait up to a second for a message."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if added := [channel for channel in self._listeners if channel.encode() not in subscription.channels]:
                await subscription.subscribe(*added)

    def _forget_unwanted(self) -> list[str]:
        """Remove and return the channels that have had no listeners for a while."""
        now = asyncio.get_running_loop().time()
        unwanted = [channel for channel, until in self._lingering.items() if until < now]
        for channel in unwanted:
            del self._lingering[channel], self._listeners[channel]
            self._subscribed.discard(channel)
        return unwanted

    def _pass_on(self, message: dict[str, Any]) -> None:
        if message["type"] not in ("message", "subscribe"):
            return
        channel = message["channel"].decode()
        if message["type"] == "subscribe":
            self._subscribed.add(channel)
        said = message["data"] if message["type"] == "message" else None
        for listener in list(+self._listeners.get(channel, Counter())):
            listener(channel, said)


class Lookups:
    """The tasks to look up next: noticed ones at once, and all of them at an interval."""

    def __init__(self) -> None:
        self._noticed: set[UUID] = set()
        self._any_noticed = asyncio.Event()
        self._all_at = 0.0

    def notice(self, *tasks: UUID) -> None:
        """Have these tasks looked up at once. Call it for each new wait, even without a task."""
        self._noticed.update(tasks)
        self._any_noticed.set()

    async def next(self, watched: Mapping[UUID, object], poll_seconds: float) -> set[UUID]:
        """Wait until watched tasks may be due, and return those that are.

        Args:
            poll_seconds: the interval at which all are due.
        """
        now = asyncio.get_running_loop().time
        if not watched:
            await self._any_noticed.wait()
            self._all_at = now() + poll_seconds
        with suppress(TimeoutError):
            await asyncio.wait_for(self._any_noticed.wait(), max(0.0, self._all_at - now()))
        self._any_noticed.clear()
        noticed, self._noticed = self._noticed, set()
        if now() < self._all_at:
            return noticed & watched.keys()
        self._all_at = now() + poll_seconds
        return set(watched)
