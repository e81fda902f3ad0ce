"""huey: tasks and results in Redis."""

from __future__ import annotations

import sys
from functools import cached_property
from typing import Any

import redis

from benchmarks.systems.system import WORKERS, RoundTrips

SECONDS = 120


class Huey(RoundTrips):
    """A consumer with two worker processes."""

    name = "huey, redis results"
    needs = "huey"
    keeps = "The result, until it is read. A task leaves Redis before it runs: a lost worker's task is lost."
    settings = "process workers, callers notified of results, no periodic tasks"

    @cached_property
    def noop(self) -> Any:
        from benchmarks.apps.huey_app import make_huey

        return make_huey(self.environment.redis(self.name))[1]

    @cached_property
    def _redis(self) -> redis.Redis:
        return redis.Redis.from_url(self.environment.redis(self.name))

    def start(self) -> None:
        self._expected = 0
        self.launch(
            *(sys.executable, "-m", "huey.bin.huey_consumer", "benchmarks.apps.huey_app.huey"),
            *("--workers", str(WORKERS), "--worker-type", "process", "--no-periodic", "--quiet"),
            BENCH_REDIS=self.environment.redis(self.name),
        )

    def submit(self, tasks: int, *, served: bool = True) -> None:
        from benchmarks.apps.huey_app import make_huey

        noop = self.noop if served else make_huey(self.environment.redis(self.name), "unserved")[1]
        for number in range(tasks):
            noop(number)
        self._expected += tasks if served else 0

    def is_idle(self) -> bool:
        return self.recorded() >= self._expected

    def recorded(self) -> int:
        results: Any = self._redis.hlen("huey.results.bench")
        return int(results)

    def call(self) -> None:
        """Submit one task, and wait for its result, which takes it out of Redis."""
        assert self.noop(1)(blocking=True, timeout=SECONDS) == 1
