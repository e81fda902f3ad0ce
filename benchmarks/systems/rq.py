"""RQ: jobs and results in Redis, and a process for each job."""

from __future__ import annotations

import sys
from functools import cached_property
from typing import Any

import redis

from benchmarks.systems.system import WORKERS, RoundTrips

SECONDS = 120
KEPT_SECONDS = 3600


class Rq(RoundTrips):
    """A pool of two workers, each of which forks a child for every job."""

    name = "rq, redis results"
    needs = "rq"
    keeps = "Job and result, for a set time. Redis may lose a second at a crash; a lost worker's job is marked failed."
    settings = "the default worker, which forks for each job; results kept for an hour"

    @cached_property
    def queue(self) -> Any:
        from rq import Queue

        return Queue(connection=self._redis)

    @cached_property
    def _redis(self) -> redis.Redis:
        return redis.Redis.from_url(self.environment.redis(self.name))

    def start(self) -> None:
        self._expected = 0
        command = (sys.executable, "-m", "rq.cli", "worker-pool", "default", "--num-workers", str(WORKERS))
        self.launch(*command, "--url", self.environment.redis(self.name), "--logging-level", "WARNING")

    def submit(self, tasks: int, *, served: bool = True) -> None:
        from rq import Queue

        queue = self.queue if served else Queue("unserved", connection=self._redis)
        jobs = [
            Queue.prepare_data("benchmarks.apps.rq_app.noop", (number,), result_ttl=KEPT_SECONDS)
            for number in range(tasks)
        ]
        with self._redis.pipeline() as pipeline:
            queue.enqueue_many(jobs, pipeline=pipeline)
            pipeline.execute()
        self._expected += tasks if served else 0

    def is_idle(self) -> bool:
        failed: Any = self._redis.zcard("rq:failed:default")
        return self.recorded() + int(failed) >= self._expected

    def recorded(self) -> int:
        finished: Any = self._redis.zcard("rq:finished:default")
        return int(finished)

    def call(self) -> None:
        """Submit one job, and wait for its result."""
        self._expected += 1
        job = self.queue.enqueue("benchmarks.apps.rq_app.noop", 1, result_ttl=KEPT_SECONDS)
        result = job.latest_result(timeout=SECONDS)
        assert result is not None
        assert result.return_value == 1
