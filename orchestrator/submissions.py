"""The queue `minion.submit` in Redis: an item that was taken is kept until its outcome is recorded.

`minion.submit`             Celery's queue, with a list for each priority
`minion.submit.refused`     submissions refused at first sight: the second line, processed when the first is empty
`minion.submit.taken`       sorted set of the items that an orchestrator holds, by the time when it took them

An orchestrator that dies leaves its items in `taken`. Any orchestrator takes them again after `patience`; the
idempotency keys make a second attempt harmless.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from shared.broker import SUBMIT_QUEUE
from shared.notifications import make_redis
from shared.tasks.envelopes import queue_keys
from shared.tasks.set_aside import SHOWN, SetAside

REFUSED = f"{SUBMIT_QUEUE}.refused"
TAKEN = f"{SUBMIT_QUEUE}.taken"
MAX_BYTES = 32 << 20
"""No more items are taken once this many bytes are held; it also bounds the memory of one round."""

# KEYS: taken, then the lists in order. ARGV: patience in seconds, maximum count, maximum bytes, largest item, bytes
# kept of a larger one. Returns pairs of size and item. An item that is too large leaves the queue permanently; its
# beginning is taken in its place. Removals come first, so that a full Redis does not stop the script in the middle.
_TAKE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local most, room, largest = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local found = {}
local function add(item)
    room = room - #item
    redis.call('ZADD', KEYS[1], now, item)
    table.insert(found, #item)
    table.insert(found, item)
end
for index = 2, #KEYS do
    while #found < 2 * most and room > 0 do
        local item = redis.call('RPOP', KEYS[index])
        if not item then break end
        if #item > largest then
            local beginning = string.sub(item, 1, tonumber(ARGV[5]))
            redis.call('ZADD', KEYS[1], now, beginning)
            table.insert(found, #item)
            table.insert(found, beginning)
        else
            add(item)
        end
    end
end
while #found < 2 * most and room > 0 do
    local late = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[1], 'LIMIT', 0, 1)
    if #late == 0 then break end
    add(late[1])
end
return found
"""


class Submissions:
    """One orchestrator's access to the queue.

    Args:
        patience: seconds after which an item that is still taken counts as abandoned.
        largest: the largest item in bytes; larger ones are set aside unread.
    """

    def __init__(self, *, patience: float, largest: int) -> None:
        # A busy server may need seconds for a large item.
        self._broker: Any = make_redis(timeout=5.0)
        self._take: Any = self._broker.register_script(_TAKE)
        self._set_aside = SetAside(self._broker)
        self._patience = patience
        self._largest = largest
        self._held: dict[bytes, None] = {}

    def take(self, limit: int) -> list[bytes]:
        """Take the next submissions, and abandoned ones."""
        return self._take_from(queue_keys(SUBMIT_QUEUE), limit)

    def take_refused(self, limit: int) -> list[bytes]:
        """Take the next items of the second line."""
        return self._take_from([REFUSED], limit)

    def finish(self, item: bytes) -> None:
        """Remove an item whose outcome is recorded."""
        self._broker.zrem(TAKEN, item)
        self._held.pop(item, None)

    def put_off(self, items: Sequence[bytes]) -> None:
        """Move items to the end of the second line."""
        self._move(items, "lpush", REFUSED)

    def give_back(self) -> None:
        """Return all held items to the head of the queue."""
        self._move([*reversed(self._held)], "rpush", SUBMIT_QUEUE)

    def set_aside(self, item: bytes, why: str, *, size: int | None = None) -> None:
        """Remove an item that is not a submission permanently."""
        # In this order, a message that leaves the queue has been counted.
        self._set_aside.put(SUBMIT_QUEUE, item, why, size=size)
        self.finish(item)

    def wait(self, seconds: float) -> None:
        """Wait for a message of the default priority. The blocking command moves an item to its own place, a no-op."""
        self._broker.blmove(SUBMIT_QUEUE, SUBMIT_QUEUE, seconds, "RIGHT", "RIGHT")

    def adopt(self) -> None:
        """Return the items that orchestrators of release 0.2 held when they ended: kombu recorded them in `unacked`."""
        seconds, microseconds = self._broker.time()
        before = seconds + microseconds / 1e6 - self._patience
        for tag in self._broker.zrangebyscore("unacked_index", "-inf", before):
            item = _submission(self._broker.hget("unacked", tag))
            if item is not None:
                with self._broker.pipeline() as pipe:
                    pipe.hdel("unacked", tag)
                    pipe.zrem("unacked_index", tag)
                    pipe.rpush(SUBMIT_QUEUE, item)
                    pipe.execute()

    def close(self) -> None:
        """Close the connection."""
        self._broker.close()

    def _take_from(self, lists: list[str], limit: int) -> list[bytes]:
        limits = [self._patience, limit, MAX_BYTES, self._largest, SHOWN]
        found = self._take(keys=[TAKEN, *lists], args=limits)
        self._held = {}
        for size, item in zip(found[::2], found[1::2], strict=True):
            if len(item) < size:
                self.set_aside(item, f"larger than {self._largest:,} bytes", size=size)
            else:
                self._held[item] = None
        return [*self._held]

    def _move(self, items: Sequence[bytes], push: str, key: str) -> None:
        if items:
            with self._broker.pipeline() as pipe:
                pipe.zrem(TAKEN, *items)
                getattr(pipe, push)(key, *items)
                pipe.execute()
        for item in items:
            self._held.pop(item, None)


def _submission(record: Any) -> str | None:
    """Return the message that kombu recorded, if it came from our queue."""
    try:
        message, _, queue = json.loads(record)
    except (TypeError, ValueError, RecursionError):
        return None
    return json.dumps(message) if queue == SUBMIT_QUEUE else None
