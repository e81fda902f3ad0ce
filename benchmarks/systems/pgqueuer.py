"""PgQueuer: jobs in PostgreSQL, and workers that listen for them."""

from __future__ import annotations

import asyncio
import sys
from functools import cached_property

from benchmarks.systems.postgres import Database
from benchmarks.systems.system import WORKERS, System

SUCCEEDED = "SELECT count(*) FROM pgqueuer_log WHERE status = 'successful' AND entrypoint = 'noop'"


class PgQueuer(System):
    """Two worker processes."""

    name = "pgqueuer"
    needs = "pgqueuer"
    keeps = (
        "Job and payload in PostgreSQL until it ends, then a line in a log; no result. A lost worker's job runs again."
    )
    settings = "psycopg driver, batches of 10 jobs (the default), log not aggregated"

    @cached_property
    def _database(self) -> Database:
        return Database(self.environment.database("bench-pgqueuer"))

    def start(self) -> None:
        from benchmarks.apps.pgqueuer_app import install

        asyncio.run(install(self._database.address))
        for _ in range(WORKERS):
            self.launch(sys.executable, "-m", "benchmarks.apps.pgqueuer_app", BENCH_DATABASE=self._database.address)

    def submit(self, tasks: int, *, served: bool = True) -> None:
        from benchmarks.apps.pgqueuer_app import enqueue

        asyncio.run(enqueue(self._database.address, "noop" if served else "unserved", tasks))

    def is_idle(self) -> bool:
        return not self._database.ask("SELECT EXISTS (SELECT FROM pgqueuer WHERE entrypoint = 'noop')")

    def recorded(self) -> int:
        return int(self._database.ask(SUCCEEDED))
