"""Waiting for tasks to finish.

A notification over Redis wakes waiting callers at once. The database is queried when a wait begins, when a subscription
begins (earlier notifications were missed), and once a second, because Redis may be unavailable. The wait for a new task
begins without a query if the notifications since before its submission have been heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from uuid import UUID

import structlog

from orchestrator.api.watching import POLL_SECONDS, Lookups, Watching
from shared.database.connections import reason
from shared.notifications import FINISHED
from shared.tasks.queries import ended

log = structlog.get_logger(__name__)


class Expectation:
    """One caller's wait for some tasks."""

    def __init__(self, tasks: Iterable[UUID], enough: int) -> None:
        self.met = asyncio.Event()
        self._left = set(tasks)
        self._most_left = len(self._left) - enough

    def end(self, task: UUID) -> None:
        """Note that one of the tasks has ended."""
        self._left.discard(task)
        if len(self._left) <= self._most_left:
            self.met.set()

    async def within(self, seconds: float) -> bool:
        """Wait until enough tasks have ended, or the time is up. Return whether they have."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.met.wait(), seconds)
        return self.met.is_set()


class Heard:
    """The tasks that have ended since the block of `FinishWatch.hearing` began, according to notifications.

    Attributes:
        all: whether no notification about the submitted task can have been missed.
    """

    def __init__(self, *, all: bool) -> None:
        self.all = all
        self.tasks: set[UUID] = set()


class FinishWatch:
    """Notifies callers on the event loop that a task has ended.

    Attributes:
        poll_seconds: interval between lookups of all awaited tasks.
    """

    def __init__(self, watching: Watching) -> None:
        self.poll_seconds = POLL_SECONDS
        self._watching = watching
        self._expected: dict[UUID, set[Expectation]] = {}
        self._hearing: set[Heard] = set()
        self._lookups = Lookups()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._released = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch while the block runs."""
        self._loop = asyncio.get_running_loop()
        looking = asyncio.create_task(self._look())
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    @contextmanager
    def hearing(self) -> Iterator[Heard]:
        """Collect the ends of tasks for one that is submitted in the block, until `expecting` waits for that."""
        heard = Heard(all=self._watching.hears(FINISHED))
        self._hearing.add(heard)
        try:
            with self._watching.listening(FINISHED, self._on_message):
                yield heard
        finally:
            self._hearing.discard(heard)

    @contextmanager
    def expecting(self, task: UUID, heard: Heard | None = None) -> Iterator[Expectation]:
        """Start to wait for the end of a task, which may have ended before. A task that does not exist has ended.

        Args:
            heard: what was heard since before the task was submitted; None if it may be older.
        """
        if heard is not None:
            # Notifications reach the expectation from now on, and a long wait must not collect those of all tasks.
            self._hearing.discard(heard)
        known = heard is not None and heard.all
        with self._expecting({task}, 1, lookups=() if known else (task,)) as expectation:
            if heard is not None and task in heard.tasks:
                expectation.end(task)
            yield expectation

    @contextmanager
    def expecting_many(self, tasks: Collection[UUID], *, first: bool) -> Iterator[Expectation]:
        """Start to wait for the end of different tasks, as `expecting` does for one.

        Args:
            first: wait for the first of them; otherwise for all.
        """
        with self._expecting(set(tasks), 1 if first else len(tasks), lookups=tasks) as expectation:
            yield expectation

    @contextmanager
    def _expecting(self, tasks: set[UUID], enough: int, *, lookups: Iterable[UUID]) -> Iterator[Expectation]:
        expectation = Expectation(tasks, enough)
        if self._released:
            expectation.met.set()
        for task in tasks:
            self._expected.setdefault(task, set()).add(expectation)
        try:
            with self._watching.listening(FINISHED, self._on_message):
                self._lookups.notice(*lookups)
                yield expectation
        finally:
            for task in tasks:
                self._forget(task, expectation)

    def release(self) -> None:
        """End all waits, now and from now on, so that they do not delay a shutdown. May be called from any thread."""
        self._released = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(lambda: self._announce(list(self._expected)))

    def _forget(self, task: UUID, expectation: Expectation) -> None:
        self._expected[task].discard(expectation)
        if not self._expected[task]:
            del self._expected[task]

    def _announce(self, tasks: Iterable[UUID]) -> None:
        for task in tasks:
            for expectation in self._expected.get(task, ()):
                expectation.end(task)

    async def _look(self) -> None:
        while True:
            due = await self._lookups.next(self._expected, self.poll_seconds)
            try:
                if due:
                    self._announce(await self._watching.ask(ended, due))
            except Exception as error:  # after any error, the tasks must be checked again
                log.warning("finish_poll_failed", reason=reason(error))

    def _on_message(self, channel: str, notification: bytes | None) -> None:
        if notification is None:
            for heard in self._hearing:
                heard.all = False
            self._lookups.notice(*self._expected)
            return
        tasks = named_in(notification)
        for heard in self._hearing:
            heard.tasks.update(tasks)
        self._announce(tasks)


def named_in(notification: bytes) -> list[UUID]:
    """Return the task named in a notification. Notifications are untrusted: any client of Redis may publish them."""
    with suppress(ValueError):
        return [UUID(notification.decode())]
    return []
