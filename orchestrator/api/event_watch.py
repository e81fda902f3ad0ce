"""Following tasks: passes each task's events to all of its followers in this process.

Stored events are read from the database, by one statement for all followers: upon a notification, and once a second.
Streamed text arrives over Redis only, and reaches only the followers connected at that moment. It is shown if its tag
proves that it comes from the worker that holds the claim.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from uuid import UUID

import structlog

from orchestrator.api.finish_watch import named_in
from orchestrator.api.watching import POLL_SECONDS, Lookups, Watching
from orchestrator.task_events import News, StreamEvent, read_news
from shared.database.connections import reason
from shared.notifications import EVENTS, FINISHED
from shared.streaming import Streamed, received

log = structlog.get_logger(__name__)

FOLLOWERS_AT_ONCE = 50
MAX_EARLY = 100
"""Streamed messages that are kept for one lookup, until their legitimate sender is known."""
LARGEST_BACKLOG = 1 << 20
"""Characters of streamed text: a client that reads more slowly is disconnected, and may reconnect."""


class Follower:
    """One caller that follows one task, with the events still to be delivered.

    Attributes:
        after: number of the last stored event that was read for this follower.
        behind: more events must be read after the pending ones have been delivered.
    """

    def __init__(self, task: UUID, after: int, look: Callable[[UUID], None]) -> None:
        """Create a follower. `look` schedules a lookup of the task."""
        self.task = task
        self.after = after
        self.behind = False
        self._look = look
        self._waiting: deque[StreamEvent] = deque()
        self._early: list[Streamed] = []
        self._keys: dict[int, bytes] = {}
        self._delivered: dict[tuple[int, int], int] = {}
        self._begun: set[tuple[int, int]] = set()
        self._first_claim: dict[int, int] = {}
        self._backlog = 0
        self._over = False
        self._wake = asyncio.Event()

    @property
    def caught_up(self) -> bool:
        """True once every stored event read so far has been delivered."""
        return not self._over and all(event.number is None for event in self._waiting)

    async def events(self, heartbeat: float) -> AsyncIterator[StreamEvent | None]:
        """Yield events until the task has no more, or the watch is released; None after `heartbeat` idle seconds."""
        while self._waiting or not self._over:
            if self._waiting:
                event = self._waiting.popleft()
                self._backlog -= _length(event)
                yield event
                continue
            if self.behind:
                self._look(self.task)
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), heartbeat)
            except TimeoutError:
                yield None

    def add_news(self, news: News) -> None:
        """Add stored events, then the text that was streamed before they were read."""
        self._keys |= news.keys
        for event in news.events:
            self.after = event.number or self.after
            if event.type == "step.started":
                self._begun.add(_step_and_claim(event))
                self._first_claim[event.data["step"]] = event.data["claim"]
            elif event.type in ("step.finished", "step.failed"):
                self._begun.discard(_step_and_claim(event))
                self._first_claim[event.data["step"]] = event.data["claim"] + 1
            self._waiting.append(event)
        early, self._early = self._early, []
        for said in early:
            self._add(said)
        self._over |= news.over
        self.behind = not news.complete
        self._wake.set()

    def stream(self, said: Streamed) -> bool:
        """Add streamed text. Return False if its step is not known to have begun under that claim: its legitimate
        sender is not known yet, so it is kept for one lookup, up to a bounded number.
        """
        if (said.step, said.claim) in self._begun:
            self._add(said)
            self._wake.set()
            return True
        if len(self._early) < MAX_EARLY:
            self._early.append(said)
        return False

    def stop(self) -> None:
        """End `events` after the pending ones."""
        self._over = True
        self._wake.set()

    def _add(self, said: Streamed) -> None:
        """Add streamed text, unless it is forged, already recorded, or from a superseded claim."""
        step, claim = said.step, said.claim
        key = self._keys.get(claim)
        if key is None or not said.is_genuine(self.task, key) or said.number <= self._delivered.get((step, claim), 0):
            return
        if claim < self._first_claim.get(step, 0):
            return
        self._delivered[step, claim] = said.number
        self._begun.add((step, claim))
        event = StreamEvent(None, said.type, said.data)
        self._waiting.append(event)
        self._backlog += _length(event)
        if self._backlog > LARGEST_BACKLOG:
            self.stop()


class EventWatch:
    """Passes the events of tasks to their followers on the event loop.

    Attributes:
        poll_seconds: interval between lookups without a notification.
    """

    def __init__(self, watching: Watching) -> None:
        self.poll_seconds = POLL_SECONDS
        self._watching = watching
        self._followers: dict[UUID, set[Follower]] = {}
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
    def following(self, task: UUID, after: int) -> Iterator[Follower]:
        """Start to follow a task, after the event of that number."""
        follower = Follower(task, after, self._look_at)
        with ExitStack() as subscriptions:
            subscriptions.enter_context(self._watching.listening(FINISHED, self._on_finished))
            subscriptions.enter_context(self._watching.listening(f"{EVENTS}{task}", self._on_message))
            self._followers.setdefault(task, set()).add(follower)
            self._look_at(task)
            if self._released:
                follower.stop()
            try:
                yield follower
            finally:
                self._forget(follower)

    def release(self) -> None:
        """End all streams, now and from now on, so that they do not delay a shutdown. May be called from any thread."""
        self._released = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop_all)

    def _stop_all(self) -> None:
        for follower in self._all():
            follower.stop()

    def _all(self) -> list[Follower]:
        return [follower for group in self._followers.values() for follower in group]

    def _forget(self, follower: Follower) -> None:
        group = self._followers[follower.task]
        group.discard(follower)
        if not group:
            del self._followers[follower.task]

    def _on_finished(self, channel: str, notification: bytes | None) -> None:
        for task in self._followers if notification is None else named_in(notification):
            self._look_at(task)

    def _on_message(self, channel: str, message: bytes | None) -> None:
        """Handle a notification that an event is stored, or streamed text."""
        task = UUID(channel.removeprefix(EVENTS))
        said = received(message) if message and len(message) <= LARGEST_BACKLOG else None
        known = [said is not None and follower.stream(said) for follower in self._followers.get(task, ())]
        if not all(known):
            self._look_at(task)

    def _look_at(self, task: UUID) -> None:
        if task in self._followers:
            self._lookups.notice(task)

    async def _look(self) -> None:
        while True:
            due = await self._lookups.next(self._followers, self.poll_seconds)
            try:
                await self._deliver([one for one in self._all() if one.task in due])
            except Exception as error:  # after any error, the followers must be served later
                log.warning("event_poll_failed", reason=reason(error))

    async def _deliver(self, followers: Sequence[Follower]) -> None:
        for follower in followers:
            follower.behind = True
        caught_up = [follower for follower in followers if follower.caught_up]
        for start in range(0, len(caught_up), FOLLOWERS_AT_ONCE):
            group = caught_up[start : start + FOLLOWERS_AT_ONCE]
            asked = [(follower.task, follower.after) for follower in group]
            for follower, news in zip(group, await self._watching.ask(read_news, asked), strict=True):
                follower.add_news(news)


def _step_and_claim(event: StreamEvent) -> tuple[int, int]:
    """Return the step that an event is about, and the claim it runs under."""
    return event.data["step"], event.data["claim"]


def _length(event: StreamEvent) -> int:
    return len(str(event.data.get("text", ""))) + 100 if event.number is None else 0
