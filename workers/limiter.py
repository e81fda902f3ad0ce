"""Rate limits: the number of calls that may begin in a period, across all processes.

One token bucket per limit, in Redis, by Redis' own clock. Of `rate` calls a period, a tenth (at least one) may begin at
once and the others follow evenly, so that no window of a period's length ever holds more than `rate`. A call that costs
more than this tenth begins when the bucket is full, and later calls wait until it is paid for: a window may then hold
more than `rate`, by the part of the cost of one such call above the tenth. If Redis lost its data, a missing bucket
starts with room for one call: the limit still holds, and only the start is slow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis
from redis.commands.core import Script

from shared.errors import Unavailable

PREFIX = "minion:{limits}:"
"""The braces keep all buckets on one node of a Redis Cluster, because a script may access only one."""

_FUNCTIONS = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function level(key, burst, speed)
    local state = redis.call('HMGET', key, 'tokens', 'at')
    local tokens, at = tonumber(state[1]), tonumber(state[2])
    return tokens and math.min(burst, tokens + math.max(0, now - at) * speed / 1000000)
end
local function keep(key, tokens, burst, speed)
    redis.call('HSET', key, 'tokens', string.format('%.17g', tokens), 'at', string.format('%.0f', now))
    redis.call('EXPIRE', key, math.max(60, math.ceil((2 * burst - tokens) / speed) * 10))
end
local function note(key, call, microseconds, costs)
    redis.call('HSET', key, call, string.format('%.0f', now + microseconds) .. ' ' .. costs)
    redis.call('PEXPIRE', key, math.ceil(microseconds / 1000))
end
"""

# KEYS: the hash of calls in flight, then one key per bucket. ARGV: the call, microseconds until it is forgotten, its
# costs ('': it is not noted); then for each bucket burst, calls a second, cost.
# Returns {0, ""} if all are granted, else {microseconds to wait, the bucket to wait for} without taking from any.
# A cost above the burst is granted by a full bucket, which then owes the rest.
_ACQUIRE = (
    _FUNCTIONS
    + """
local wait, blocking, left = 0, '', {}
for i = 2, #KEYS do
    local burst, speed, cost = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
    local needed = math.min(cost, burst)
    local tokens = level(KEYS[i], burst, speed) or needed
    if tokens + 1e-9 < needed then
        local missing = math.ceil((needed - tokens) * 1000000 / speed)
        if missing > wait then wait, blocking = missing, KEYS[i] end
    end
    left[i] = {tokens, cost, burst, speed}
end
for i = 2, #KEYS do
    local tokens, cost, burst, speed = unpack(left[i])
    if wait == 0 then tokens = tokens - cost end
    keep(KEYS[i], tokens, burst, speed)
end
if wait == 0 and ARGV[3] ~= '' then note(KEYS[1], ARGV[1], ARGV[2], ARGV[3]) end
return {string.format('%.0f', wait), blocking}
"""
)

# KEYS: the hash of calls in flight, the key of a pause, the hash of known limits. ARGV: the call, microseconds until it
# is forgotten, its costs, and whether it also has limits that are not in the hash.
# Returns {milliseconds of the pause, the hash}, and notes the call if neither these nor other limits apply to it. One
# random call is checked too: those that were killed are forgotten in time, without looking at all of them.
_ENTER = (
    _FUNCTIONS
    + """
local held, known = redis.call('PTTL', KEYS[2]), redis.call('HGETALL', KEYS[3])
if held <= 0 and #known == 0 and ARGV[4] == '' then
    local some = redis.call('HRANDFIELD', KEYS[1], 1, 'WITHVALUES')
    if some[1] and tonumber(string.match(some[2], '%S+')) < now then redis.call('HDEL', KEYS[1], some[1]) end
    note(KEYS[1], ARGV[1], ARGV[2], ARGV[3])
end
return {held, known}
"""
)

# KEYS and ARGV as for _ACQUIRE, but for each bucket: burst, calls a second, the amount to give back, the room that the
# bucket has at most before the calls in flight are subtracted ('': unknown), and the index of the cost to subtract.
_CORRECT = (
    _FUNCTIONS
    + """
redis.call('HDEL', KEYS[1], ARGV[1])
if ARGV[3] ~= '' then note(KEYS[1], ARGV[1], ARGV[2], ARGV[3]) end
local flying, calls = {}, redis.call('HGETALL', KEYS[1])
for c = 1, #calls, 2 do
    local numbers = {}
    for number in string.gmatch(calls[c + 1], '%S+') do numbers[#numbers + 1] = tonumber(number) end
    if numbers[1] < now then redis.call('HDEL', KEYS[1], calls[c]) else
        for n = 2, #numbers do flying[n - 1] = (flying[n - 1] or 0) + numbers[n] end
    end
end
for i = 2, #KEYS do
    local at = 5 * i - 6
    local burst, speed, back, most = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), ARGV[at + 3]
    local tokens = level(KEYS[i], burst, speed)
    if tokens then tokens = math.min(burst, tokens + back) end
    if most ~= '' then
        tokens = math.min(tokens or burst, tonumber(most) - (flying[tonumber(ARGV[at + 4])] or 0))
    end
    if tokens then keep(KEYS[i], tokens, burst, speed) end
end
"""
)

# KEYS: a bucket's queue. ARGV: microseconds to wait for the bucket, between two callers, and until the last slot.
# Returns the microseconds until the caller's slot.
_LINE_UP = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local wait, longest = tonumber(ARGV[1]), tonumber(ARGV[3])
local turn = math.max(now + wait, tonumber(redis.call('GET', KEYS[1]) or 0))
turn = math.min(turn, now + longest)
redis.call('SET', KEYS[1], string.format('%.0f', turn + ARGV[2]), 'PX', math.ceil((turn - now) / 1000) + 1000)
return string.format('%.0f', turn - now)
"""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A limit, and the cost of one call.

    Attributes:
        name: of the limited resource.
        rate: calls (or tokens, for costs above one) in a period.
        period: seconds.
        cost: of the call, in units of the rate.
    """

    name: str
    rate: float
    period: float
    cost: float = 1.0

    @property
    def burst(self) -> float:
        """The amount that may be taken at once."""
        return max(1.0, self.rate // 10)

    @property
    def speed(self) -> float:
        """The amount that is refilled per second; together with the burst it is at most `rate` in a period."""
        return (self.rate - self.burst + 1) / self.period


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer for a call. If it may not begin: seconds to wait and the bucket's name, and nothing was taken."""

    granted: bool
    wait: float = 0.0
    blocking: str | None = None


@dataclass(frozen=True, slots=True)
class Flight:
    """A granted call that may not have ended yet, and the costs that it may still incur on shared limits.

    Attributes:
        name: of the group of calls that are counted together.
        call: the id of this call.
        costs: by kind; empty when the call is over.
        seconds: until the call is forgotten if its end is never reported.
    """

    name: str
    call: str
    costs: tuple[float, ...] = ()
    seconds: float = 600.0

    def arguments(self) -> list[str | float]:
        """The call as arguments of the scripts."""
        return [self.call, self.seconds * 1e6, " ".join(f"{cost}" for cost in self.costs)]


@dataclass(frozen=True, slots=True)
class Correction:
    """The state of a bucket as known after a call.

    Attributes:
        back: the amount that the call had taken in excess (negative: too little).
        room: the room that is left, before the calls in flight are subtracted; None: unknown.
        kind: index of the cost of those calls that is subtracted, from 0.
    """

    bucket: Bucket
    back: float = 0.0
    room: float | None = None
    kind: int = 0


ALONE = Flight("calls", "")


class Limiter:
    """Requests room in buckets.

    Args:
        client: the Redis of the limits.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._enter, self._acquire, self._correct, self._line_up = (
            client.register_script(script) for script in (_ENTER, _ACQUIRE, _CORRECT, _LINE_UP)
        )

    def enter(self, flight: Flight, pause: str, known: str, *, limited: bool) -> tuple[float, dict[str, str]]:
        """Return the seconds of a pause of all calls, and known limits. If there are none of both, the call is recorded
        as granted.

        Args:
            pause: name of the key whose life is the pause.
            known: name of the hash of limits.
            limited: the call has other limits too, so that it must `acquire` in any case.

        Raises:
            Unavailable: Redis does not answer.
        """
        keys = [_flights(flight), PREFIX + pause, PREFIX + known]
        held, found = _answer(self._enter, keys, [*flight.arguments(), "1" if limited else ""])
        texts = [text.decode() for text in found]
        return max(0, held) / 1000, dict(zip(texts[::2], texts[1::2], strict=True))

    def leave(self, flight: Flight) -> None:
        """Forget a call that is over, and that no limit applied to.

        Raises:
            Unavailable: Redis does not answer.
        """
        with _may_be_away():
            self._client.hdel(_flights(flight), flight.call)

    def acquire(self, buckets: Sequence[Bucket], flight: Flight = ALONE) -> Verdict:
        """Take room in all buckets, or in none.

        Args:
            flight: recorded when the call is granted, if it has costs.

        Raises:
            Unavailable: Redis does not answer, so that a limit might be exceeded.
        """
        arguments = [number for bucket in buckets for number in (bucket.burst, bucket.speed, bucket.cost)]
        wait, blocking = self._run(self._acquire, flight, buckets, arguments)
        if int(wait) == 0:
            return Verdict(True)
        return Verdict(False, int(wait) / 1e6, blocking.decode().removeprefix(PREFIX))

    def correct(self, flight: Flight, corrections: Sequence[Correction]) -> None:
        """Record the remaining cost of a call, and the new information about the buckets.

        Raises:
            Unavailable: Redis does not answer.
        """
        arguments: list[str | float] = []
        for known in corrections:
            room = "" if known.room is None else known.room
            arguments += [known.bucket.burst, known.bucket.speed, known.back, room, known.kind + 1]
        self._run(self._correct, flight, [known.bucket for known in corrections], arguments)

    def line_up(self, bucket: Bucket, wait: float, *, apart: float, longest: float) -> float:
        """Return the seconds after which a caller that must wait for a bucket should ask again.

        Callers that wait would all return at the same moment, all but one in vain. Instead each gets a slot `apart`
        seconds after the previous one, or less if the bucket fills faster, and after `longest` seconds at the latest.

        Raises:
            Unavailable: Redis does not answer.
        """
        microseconds = [wait * 1e6, min(apart, bucket.cost / bucket.speed) * 1e6, longest * 1e6]
        return int(_answer(self._line_up, [f"{PREFIX}line:{bucket.name}"], microseconds)) / 1e6

    def _run(self, script: Script, flight: Flight, buckets: Sequence[Bucket], arguments: Sequence[str | float]) -> Any:
        keys = [_flights(flight), *(PREFIX + bucket.name for bucket in buckets)]
        return _answer(script, keys, [*flight.arguments(), *arguments])


def _flights(flight: Flight) -> str:
    return f"{PREFIX}flight:{flight.name}"


def _answer(script: Script, keys: list[str], arguments: Sequence[str | float]) -> Any:
    with _may_be_away():
        return script(keys=keys, args=arguments)


@contextmanager
def _may_be_away() -> Iterator[None]:
    try:
        yield
    except (redis.RedisError, OSError) as error:
        raise Unavailable(f"The limiter's Redis does not answer ({error}); no call starts until it does.") from None
