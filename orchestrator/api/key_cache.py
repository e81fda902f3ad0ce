"""The keys and logins that requests have presented, for a second at most: a busy one costs one look into the database
a second.

A revocation therefore holds everywhere within a second, and at once where the notification of it arrives.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from sqlalchemy import Connection, Engine
from starlette.concurrency import run_in_threadpool

from orchestrator.api.watching import Watching
from shared.access.keys import Found
from shared.errors import Unavailable
from shared.notifications import KEYS

SECONDS = 1.0
MOST = 10_000
"""Keys that are kept, right or wrong: a flood of wrong ones takes little memory."""
LOOKS_AT_ONCE = 4
"""A flood of wrong keys takes no more connections than these."""
WAITING = 1_000


FoundKey = TypeVar("FoundKey", bound=Found)


class KeyCache(Generic[FoundKey]):
    """Finds keys or logins by their digests. For one event loop.

    Args:
        database: an engine in autocommit mode.
        look_up: finds one in the database.
    """

    def __init__(self, database: Engine, look_up: Callable[[Connection, bytes], FoundKey]) -> None:
        self._database = database
        self._look_up = look_up
        self._found: dict[bytes, tuple[FoundKey, float, int]] = {}
        self._looking: dict[bytes, asyncio.Task[FoundKey]] = {}
        self._changes = 0
        self._slots = asyncio.Semaphore(LOOKS_AT_ONCE)

    @asynccontextmanager
    async def following(self, watching: Watching) -> AsyncIterator[None]:
        """Forget all keys at each notification of a change while the block runs."""
        with watching.listening(KEYS, lambda channel, message: self.forget()):
            yield

    def forget(self) -> None:
        """Look at all keys again at their next use."""
        self._changes += 1

    def was_valid(self, digest: bytes) -> bool:
        """Return whether a key was valid when it was last looked up, if that is still known."""
        known = self._found.get(digest)
        return known is not None and known[0].key is not None

    async def find(self, digest: bytes) -> FoundKey:
        """Return the key with this digest, or the reason why there is none.

        Raises:
            SQLAlchemyError: the database is unavailable.
            Unavailable: too many keys are being looked up.
        """
        found, until, changes = self._found.get(digest, (None, 0.0, 0))
        if found is not None and time.monotonic() < until and changes == self._changes:
            return found
        looking = self._looking.get(digest)
        if looking is None:
            if len(self._looking) >= WAITING:
                raise Unavailable("Too many API keys and logins are being looked up. Try again in a few seconds.")
            looking = self._looking[digest] = asyncio.create_task(self._look(digest))
            looking.add_done_callback(lambda done: self._looked(digest, done))
        # The first caller may disconnect; the others still wait.
        return await asyncio.shield(looking)

    async def _look(self, digest: bytes) -> FoundKey:
        async with self._slots:
            began, changes = time.monotonic(), self._changes
            found = await run_in_threadpool(self._read, digest)
        seconds = SECONDS if found.seconds_left is None else min(SECONDS, found.seconds_left)
        if len(self._found) >= MOST:
            self._found.clear()
        self._found[digest] = found, began + seconds, changes
        return found

    def _read(self, digest: bytes) -> FoundKey:
        with self._database.connect() as connection:
            return self._look_up(connection, digest)

    def _looked(self, digest: bytes, done: asyncio.Task[FoundKey]) -> None:
        del self._looking[digest]
        if not done.cancelled():
            done.exception()  # each caller has it; asyncio need not report it too
