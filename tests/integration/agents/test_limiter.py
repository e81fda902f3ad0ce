"""The limiter on a real Redis, over several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any
from uuid import uuid4

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.errors import Unavailable
from shared.notifications import make_redis
from tests.support.processes import ROOT, wait_until
from workers.limiter import PREFIX, Bucket, Correction, Flight, Limiter

HAMMER = """
import json, sys, time
from shared.notifications import make_redis
from workers.limiter import Bucket, Limiter
limiter, bucket = Limiter(make_redis()), Bucket(sys.argv[1], 40, 1.0)
end, granted = time.monotonic() + 3, []
while time.monotonic() < end:
    verdict = limiter.acquire([bucket])
    if verdict.granted:
        granted.append(time.time())
    else:
        time.sleep(min(verdict.wait, 0.05))
print(json.dumps(granted))
"""


@pytest.fixture
def limiter(servers: Any) -> Limiter:
    return Limiter(make_redis())


def test_eight_processes_never_exceed_the_rate(servers: Any) -> None:
    name = str(uuid4())
    command = [sys.executable, "-c", HAMMER, name]
    running = [
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)
        for _ in range(8)
    ]
    granted = sorted(moment for process in running for moment in json.loads(process.communicate(timeout=60)[0]))
    # What is measured is when the answer came back, so a call may seem some milliseconds nearer to the next.
    for index, first in enumerate(granted):
        window = [moment for moment in granted[index:] if moment < first + 0.95]
        assert len(window) <= 40
    assert len(granted) > 60, "a limit is not a stop"


def test_call_without_limits_is_recorded_until_it_is_over(limiter: Limiter) -> None:
    group = str(uuid4())
    calls = [Flight(group, name, (1.0,)) for name in ("first", "second")]
    for call in calls:
        assert limiter.enter(call, f"hold:{group}", f"learned:{group}", limited=False) == (0.0, {})
    assert _flying(group) == {"first", "second"}
    limiter.leave(calls[0])
    assert _flying(group) == {"second"}


def test_call_with_limits_is_not_recorded_before_they_grant_it(limiter: Limiter) -> None:
    group = str(uuid4())
    call = Flight(group, "call", (1.0,))
    limiter.enter(call, f"hold:{group}", f"learned:{group}", limited=True)
    with make_redis() as client:
        client.hset(f"{PREFIX}learned:{group}", "requests", "10 60")
        assert limiter.enter(call, f"hold:{group}", f"learned:{group}", limited=False) == (0.0, {"requests": "10 60"})
        client.delete(f"{PREFIX}learned:{group}")
        client.set(f"{PREFIX}hold:{group}", "429", px=60_000)
    held, _ = limiter.enter(call, f"hold:{group}", f"learned:{group}", limited=False)
    assert 50 < held <= 60
    assert _flying(group) == set()


def test_killed_calls_without_limits_are_forgotten(limiter: Limiter) -> None:
    group = str(uuid4())
    killed = {f"killed {n}" for n in range(5)}
    for name in killed:
        limiter.enter(Flight(group, name, (1.0,), seconds=1e-6), f"hold:{group}", f"learned:{group}", limited=False)
        limiter.enter(Flight(group, "living", (1.0,)), f"hold:{group}", f"learned:{group}", limited=False)

    def are_forgotten() -> bool:
        limiter.enter(Flight(group, "living", (1.0,)), f"hold:{group}", f"learned:{group}", limited=False)
        return _flying(group) == {"living"}

    wait_until(are_forgotten, "the killed calls are forgotten", 30)


def _flying(group: str) -> set[str]:
    with make_redis() as client:
        found: Any = client.hkeys(f"{PREFIX}flight:{group}")
    return {call.decode() for call in found}


def test_all_buckets_or_none(limiter: Limiter) -> None:
    wide, narrow = Bucket(str(uuid4()), 1_000_000, 1.0), Bucket(str(uuid4()), 1, 60.0)
    assert limiter.acquire([wide, narrow]).granted
    refused = limiter.acquire([wide, narrow])
    assert (refused.granted, refused.blocking) == (False, narrow.name)
    assert 55 < refused.wait <= 60
    assert limiter.acquire([wide]).granted


def test_bucket_lost_by_redis_starts_with_room_for_one(limiter: Limiter) -> None:
    bucket = Bucket(str(uuid4()), 1000, 60.0)
    with make_redis() as broker:
        assert limiter.acquire([bucket]).granted
        time.sleep(1)
        broker.flushdb()
    assert limiter.acquire([bucket]).granted
    assert not limiter.acquire([bucket]).granted


def test_a_cost_above_the_burst_is_paid_back(limiter: Limiter) -> None:
    tokens = Bucket(str(uuid4()), 1, 1.0, cost=5)
    assert limiter.acquire([tokens]).granted
    assert 4 < limiter.acquire([tokens]).wait <= 5


def test_call_without_reported_end_is_forgotten(limiter: Limiter) -> None:
    """A process that was killed during a call does not hold its room indefinitely."""
    bucket, calls = Bucket(str(uuid4()), 100, 60.0), str(uuid4())
    limiter.acquire([], Flight(calls, "killed", (10.0,), seconds=0.01))
    limiter.acquire([], Flight(calls, "alive", (10.0,)))
    time.sleep(0.02)
    limiter.correct(Flight(calls, ""), [Correction(bucket, room=12.0)])
    assert limiter.acquire([bucket]).granted
    assert limiter.acquire([bucket]).granted
    assert not limiter.acquire([bucket]).granted


def test_no_call_begins_without_redis() -> None:
    away = Limiter(redis.Redis(port=1, retry=Retry(NoBackoff(), 0)))
    with pytest.raises(Unavailable, match="no call starts"):
        away.acquire([Bucket("x", 1, 1.0)])
