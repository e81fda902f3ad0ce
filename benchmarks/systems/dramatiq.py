"""dramatiq: messages and results in Redis."""

from __future__ import annotations

import sys
from functools import cached_property
from typing import Any

import redis

from benchmarks.systems.system import WORKER_POLL_SECONDS, WORKERS, RoundTrips

MILLISECONDS = 120_000


class Dramatiq(RoundTrips):
    """Two worker processes."""

    name = "dramatiq, redis results"
    needs = "dramatiq"
    keeps = "The result, for ten minutes. Redis may lose a second at a crash; a lost worker's message runs again."
    settings = "results middleware, 8 threads in each process (the default); polled every 0.1 s by idle workers (1 s)"

    @cached_property
    def actor(self) -> Any:
        from benchmarks.apps.dramatiq_app import make_actors

        return make_actors(self._address)

    @cached_property
    def _address(self) -> str:
        return self.environment.redis(self.name)

    @cached_property
    def _redis(self) -> redis.Redis:
        return redis.Redis.from_url(self._address)

    def start(self) -> None:
        self._submitted = 0
        self.launch(
            *(sys.executable, "-m", "dramatiq", "benchmarks.apps.dramatiq_app", "--queues", "default"),
            *("--processes", str(WORKERS)),
            BENCH_REDIS=self._address,
            dramatiq_worker_timeout=str(int(1000 * WORKER_POLL_SECONDS)),
        )

    def submit(self, tasks: int, *, served: bool = True) -> None:
        broker = self.actor.broker
        for number in range(tasks):
            message = self.actor.message(number)
            broker.enqueue(message if served else message.copy(queue_name="unserved"))
        self._submitted += tasks if served else 0

    def is_idle(self) -> bool:
        return not self._redis.hlen("dramatiq:default.msgs")

    def recorded(self) -> int:
        """A message is acknowledged after its result is stored; a dead one moves to another queue."""
        waiting: Any = self._redis.hlen("dramatiq:default.msgs")
        dead: Any = self._redis.zcard("dramatiq:default.XQ")
        return int(self._submitted - waiting - dead)

    def call(self) -> None:
        """Submit one task, and wait for its result."""
        self._submitted += 1
        self.actor.send(1).get_result(block=True, timeout=MILLISECONDS)
