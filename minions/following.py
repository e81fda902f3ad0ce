"""Following a task: its events as they happen, over as many connections as necessary."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from minions.task import FINAL
from minions.transport import Again, Transport, pause_after

ENDINGS = frozenset(f"task.{state}" for state in FINAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEvent:
    """Something that happened to a task.

    Attributes:
        id: counts from 1 within the task; None for streamed text, which is not stored.
        type: `task.accepted`, `task.running`, `task.waiting`, `task.pending`, finally `task.succeeded`, `task.failed`,
            `task.cancelled` or `task.expired`; `step.started`, `step.finished`, `step.failed`; `step.text` (new text in
            `data["text"]`, which starts after `data["from"]` characters, some of which may have been missed) and
            `step.restarted` (the text streamed for `data["step"]` so far is void).
        data: documented on the API's page on events.
    """

    id: int | None
    type: str
    data: dict[str, Any]

    @property
    def final(self) -> bool:
        """True if no event follows it."""
        return self.type in ENDINGS


def follow(transport: Transport, path: str, after: int) -> Iterator[TaskEvent]:
    """Yield the events after the given one. A broken connection is resumed where it broke off.

    Raises:
        Unavailable: the API is still unavailable after the retries.
        MinionsError: the API refused the request.
    """
    failures = 0
    while True:
        try:
            for event in _connection(transport, path, after):
                failures = 0
                if event is None:
                    continue
                after = event.id or after
                yield event
                if event.final:
                    return
            # No more events, although the task continues: the server is stopping.
            failures += 1
            time.sleep(pause_after(failures))
        except _AllRead:
            return
        except Again as again:
            failures += 1
            if failures > transport.retries:
                raise again.error from None
            time.sleep(again.pause or pause_after(failures))


class _AllRead(Exception):
    """The task has ended and all events were read."""


def _connection(transport: Transport, path: str, after: int) -> Iterator[TaskEvent | None]:
    """Yield the events of one connection; None for each keep-alive."""
    for message in transport.events(path, last_id=after):
        if message is None:
            raise _AllRead
        # An id applies to all following events until the next id.
        number = int(message.id or 0)
        if number > after:
            after = number
            yield TaskEvent(id=number, type=message.event, data=json.loads(message.data))
        else:
            yield TaskEvent(id=None, type=message.event, data=json.loads(message.data)) if message.data else None
