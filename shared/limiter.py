"""The one limiter: how many calls of something may begin in a period, over all processes.

A token bucket for each limit, in Redis, in one script, by Redis' own clock. Of `rate` calls a period, a tenth may begin
at once (one at least) and the others follow evenly, so that no window of a period's length ever holds more than `rate`.
Where Redis was lost, a missing bucket starts with room for one call: the limit is not exceeded then either, it is only
slow to begin with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import redis

from shared.errors import Unavailable

PREFIX = "minion:{limits}:"
"""The braces keep all buckets on one node of a Redis Cluster, where one script may touch only one."""

# KEYS: a bucket each. ARGV: for each bucket burst, calls a second, cost.
# Returns {0, ""} when all are granted, else {microseconds to wait, the bucket to wait for}; then none is taken from.
# A cost above the burst is granted by a full bucket, which then owes the rest.
_ACQUIRE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local wait, blocking, left = 0, '', {}
for i, key in ipairs(KEYS) do
    local burst, speed, cost = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
    local state = redis.call('HMGET', key, 'tokens', 'at')
    local tokens, at = tonumber(state[1]), tonumber(state[2])
    if tokens == nil then
        tokens = math.min(1, burst)
    else
        tokens = math.min(burst, tokens + math.max(0, now - at) * speed / 1000000)
    end
    local needed = math.min(cost, burst)
    if tokens + 1e-9 < needed then
        local missing = math.ceil((needed - tokens) * 1000000 / speed)
        if missing > wait then wait, blocking = missing, key end
    end
    left[i] = {tokens, cost, math.max(60, math.ceil((burst + cost) / speed) * 10)}
end
for i, key in ipairs(KEYS) do
    local tokens = left[i][1]
    if wait == 0 then tokens = tokens - left[i][2] end
    redis.call('HSET', key, 'tokens', string.format('%.17g', tokens), 'at', string.format('%.0f', now))
    redis.call('EXPIRE', key, left[i][3])
end
return {string.format('%.0f', wait), blocking}
"""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A limit, and how much of it one call takes.

    Attributes:
        name: of what is limited.
        rate: calls (or tokens, for costs above one) in a period.
        period: seconds.
        cost: what the call takes of the rate.
    """

    name: str
    rate: float
    period: float
    cost: float = 1.0

    @property
    def burst(self) -> float:
        """How much may be taken at once."""
        return max(1.0, self.rate // 10)

    @property
    def speed(self) -> float:
        """What comes back in a second; with the burst it makes `rate` in a period, and no more."""
        return (self.rate - self.burst + 1) / self.period


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a call may begin; if not, seconds to wait and the bucket's name. Nothing was taken then."""

    granted: bool
    wait: float = 0.0
    blocking: str | None = None


class Limiter:
    """Asks for room in buckets.

    Args:
        client: the Redis of the limits.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._script = client.register_script(_ACQUIRE)

    def acquire(self, buckets: Sequence[Bucket]) -> Verdict:
        """Room in all buckets, or in none.

        Raises:
            Unavailable: Redis does not answer, and without it nobody knows whether a limit would be exceeded.
        """
        arguments = [number for bucket in buckets for number in (bucket.burst, bucket.speed, bucket.cost)]
        try:
            wait, blocking = self._script(keys=[PREFIX + bucket.name for bucket in buckets], args=arguments)
        except (redis.RedisError, OSError) as error:
            raise Unavailable(f"The limiter's Redis does not answer ({error}); no call begins until it does.") from None
        if int(wait) == 0:
            return Verdict(True)
        return Verdict(False, int(wait) / 1e6, blocking.decode().removeprefix(PREFIX))
