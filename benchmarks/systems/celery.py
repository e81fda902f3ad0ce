"""Plain Celery, with Redis as its broker and two places for results."""

from __future__ import annotations

import sys
from typing import Any

import redis
from celery import chain, chord

from benchmarks.apps.celery_app import echo, join, make_app, model_call, noop
from benchmarks.environment import Environment
from benchmarks.systems.postgres import Database
from benchmarks.systems.system import RESULT_POLL_SECONDS, WORKERS, CallsModel, Composes

SECONDS = 120


class Celery(Composes):
    """What both backends have in common."""

    needs = "celery"
    settings = "defaults: a message is acknowledged before its task runs"
    late = False

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._broker = _socket_url(environment.redis(self.name))
        self._expected = 0
        self.backend = self.make_backend()
        self.app = make_app(self._broker, self.backend, late=self.late)

    def make_backend(self) -> str:
        """Return the address of the result backend."""
        raise NotImplementedError

    def start(self) -> None:
        self.launch(
            *(sys.executable, "-m", "celery", "-A", "benchmarks.apps.celery_app", "worker"),
            *("-c", str(WORKERS), "-l", "WARNING", "-n", f"{self.name.replace(', ', '-').replace(' ', '-')}@%h"),
            BENCH_BROKER=self._broker,
            BENCH_BACKEND=self.backend,
            **({"BENCH_LATE": "1"} if self.late else {}),
        )

    def submit(self, tasks: int, *, served: bool = True) -> None:
        self._send(noop.name, tasks, queue=None if served else "unserved")
        self._expected += tasks if served else 0

    def _send(self, name: str, tasks: int, queue: str | None = None) -> None:
        with self.app.producer_pool.acquire(block=True) as producer:
            for value in range(tasks):
                self.app.send_task(name, (value,), producer=producer, queue=queue)

    def is_idle(self) -> bool:
        return self.recorded() >= self._expected

    def call(self) -> None:
        """Submit one task, and wait for its result."""
        self._expected += 1
        self._wait_for(self.app.signature(noop.name, (1,)))

    def chain(self, steps: int) -> None:
        """Run a chain."""
        self._expected += steps
        links = [self.app.signature(echo.name, (1,) if step == 0 else ()) for step in range(steps)]
        self._wait_for(chain(*links, app=self.app))

    def fan_out(self, tasks: int) -> None:
        """Run a chord."""
        header = [self.app.signature(noop.name, (value,)) for value in range(tasks)]
        outputs = self._wait_for(chord(header, self.app.signature(join.name), app=self.app))
        assert outputs == tasks
        self._expected = self.recorded()

    def _wait_for(self, signature: Any) -> Any:
        # Only the backend for databases polls: every half second by default.
        return signature.apply_async().get(timeout=SECONDS, interval=RESULT_POLL_SECONDS)


class CeleryRedis(CallsModel, Celery):
    """Results in Redis, Celery's usual choice."""

    name = "celery, redis results"
    model_row = name
    keeps = "The result, for a day. A lost worker's tasks are lost; Redis may lose a second of submissions at a crash."

    def make_backend(self) -> str:
        address = self.environment.redis(f"{self.name}, results")
        self._results = redis.Redis.from_url(address)
        return _socket_url(address)

    def submit_model_calls(self, tasks: int) -> None:
        self._send(model_call.name, tasks)
        self._expected += tasks

    def recorded(self) -> int:
        """Every key of the database is a result."""
        size: Any = self._results.dbsize()
        return int(size)


class CeleryLate(CeleryRedis):
    """The same, with the settings for tasks that must not be lost."""

    name = "celery, redis results, late"
    model_row = name
    keeps = "The result, for a day. A lost worker's task runs again; Redis may lose a second of submissions at a crash."
    settings = "late acknowledgement, rejection on worker loss, a prefetch multiplier of 1"
    submits = False
    late = True


class CeleryPostgres(Celery):
    """Results in PostgreSQL; the messages are still in Redis."""

    name = "celery, postgres results"
    submits = False
    settings = "defaults; results polled every 0.01 s by callers (0.5 s)"
    keeps = "The result, in PostgreSQL, for a day. A lost worker's tasks are lost; submissions are in Redis."

    def make_backend(self) -> str:
        address = self.environment.database("bench-celery")
        self._database = Database(address)
        return "db+" + address.replace("postgresql://", "postgresql+psycopg://")

    def recorded(self) -> int:
        """Celery creates its table with the first result."""
        if self._database.ask("SELECT to_regclass('celery_taskmeta')::text") is None:
            return 0
        return int(self._database.ask("SELECT count(*) FROM celery_taskmeta WHERE status = 'SUCCESS'"))


def _socket_url(address: str) -> str:
    """Return the address of a Redis database for Celery, over the private server's socket."""
    path, _, number = address.removeprefix("unix://").partition("?db=")
    return f"redis+socket://{path}?virtual_host={number}"
