"""procrastinate: jobs in PostgreSQL, and workers that listen for them."""

from __future__ import annotations

import sys
from functools import cached_property
from typing import Any

from benchmarks.systems.postgres import Database
from benchmarks.systems.system import WORKERS, System

SLOTS = 10
"""Jobs at once in a process. The default is 1, which is slower: a slot also waits while its job is recorded."""


LIVE = """
    SELECT EXISTS (SELECT FROM procrastinate_jobs WHERE queue_name = 'default' AND status IN ('todo', 'doing'))
"""


class Procrastinate(System):
    """Two worker processes."""

    name = "procrastinate"
    needs = "procrastinate"
    keeps = "Job, arguments, state and events in PostgreSQL, but no result. A lost worker's job needs a retry by hand."
    settings = "psycopg connector, notifications on, 10 jobs at once in each process, jobs kept after they end"

    @cached_property
    def _database(self) -> Database:
        return Database(self.environment.database("bench-procrastinate"))

    @cached_property
    def tasks(self) -> Any:
        from benchmarks.apps.procrastinate_app import make_app

        app, noop = make_app(self._database.address, sync=True)
        app.open()
        app.schema_manager.apply_schema()
        return noop

    def start(self) -> None:
        assert self.tasks
        command = (
            *(sys.executable, "-m", "procrastinate", "--app", "benchmarks.apps.procrastinate_app.app"),
            *("--log-level", "warning", "worker", "--queues", "default", "--concurrency", str(SLOTS)),
        )
        for _ in range(WORKERS):
            self.launch(*command, BENCH_DATABASE=self._database.address)

    def submit(self, tasks: int, *, served: bool = True) -> None:
        deferrer = self.tasks.configure(queue="default" if served else "unserved")
        deferrer.batch_defer(*({"value": number} for number in range(tasks)))

    def is_idle(self) -> bool:
        return not self._database.ask(LIVE)

    def recorded(self) -> int:
        return int(self._database.ask("SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'"))
