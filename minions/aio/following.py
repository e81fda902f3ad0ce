"""Following a task: its events as they happen, over as many connections as necessary."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from minions.aio.transport import AsyncTransport
from minions.task_event import TaskEvent
from minions.wire import Again, pause_after


async def follow(transport: AsyncTransport, path: str, after: int) -> AsyncGenerator[TaskEvent, None]:
    """Yield the events after the given one. A broken connection is resumed where it broke off.

    Raises:
        Unavailable: the API is still unavailable after the retries.
        MinionsError: the API refused the request.
    """
    failures = 0
    while True:
        try:
            async with aclosing(_connection(transport, path, after)) as events:
                async for event in events:
                    failures = 0
                    if event is None:
                        continue
                    after = event.id or after
                    yield event
                    if event.final:
                        return
            # No more events, although the task continues: the server is stopping.
            failures += 1
            await asyncio.sleep(pause_after(failures))
        except _AllRead:
            return
        except Again as again:
            failures += 1
            if failures > transport.retries:
                raise again.error from None
            await asyncio.sleep(again.pause or pause_after(failures))


class _AllRead(Exception):
    """The task has ended and all events were read."""


async def _connection(transport: AsyncTransport, path: str, after: int) -> AsyncGenerator[TaskEvent | None, None]:
    """Yield the events of one connection; None for each keep-alive."""
    async with aclosing(transport.events(path, last_id=after)) as messages:
        async for message in messages:
            if message is None:
                raise _AllRead
            # An id applies to all following events until the next id.
            number = int(message.id or 0)
            if number > after:
                after = number
                yield TaskEvent(id=number, type=message.event, data=json.loads(message.data))
            elif message.data:
                yield TaskEvent(id=None, type=message.event, data=json.loads(message.data))
            else:
                yield None
