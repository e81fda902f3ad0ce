"""DBOS: durable workflows in PostgreSQL."""

from __future__ import annotations

import sys
from functools import cached_property
from typing import Any

from sqlalchemy import create_engine

from benchmarks.systems.postgres import Database
from benchmarks.systems.system import RESULT_POLL_SECONDS, WORKERS, RoundTrips

QUEUE = "bench"
SUCCEEDED = "SELECT count(*) FROM dbos.workflow_status WHERE queue_name = %s AND status = 'SUCCESS'"
LIVE = "SELECT EXISTS (SELECT FROM dbos.workflow_status WHERE queue_name = %s AND status IN ('ENQUEUED', 'PENDING'))"


class Dbos(RoundTrips):
    """Two processes that take workflows from a queue."""

    name = "dbos"
    needs = "dbos"
    keeps = "Workflow, input, steps and output in PostgreSQL. A lost process's workflows run again when it restarts."
    settings = "no limit on concurrency (the default); polled every 0.1 s by workers and every 0.01 s by callers (1 s)"

    @cached_property
    def _database(self) -> Database:
        return Database(self.environment.database("bench-dbos"))

    @cached_property
    def client(self) -> Any:
        from dbos import DBOSClient

        return DBOSClient(system_database_url=self._database.address)

    @cached_property
    def _engine(self) -> Any:
        return create_engine(self._database.address.replace("postgresql://", "postgresql+psycopg://"))

    def start(self) -> None:
        from benchmarks.apps.dbos_app import migrate

        migrate(self._database.address)
        for number in range(WORKERS):
            command = (sys.executable, "-m", "benchmarks.apps.dbos_app", self._database.address, f"worker-{number}")
            self.launch(*command)

    def submit(self, tasks: int, *, served: bool = True) -> None:
        options = _options(QUEUE if served else "unserved")
        with self._engine.begin() as connection:
            for number in range(tasks):
                self.client.enqueue_in_transaction(connection, options, number)

    def is_idle(self) -> bool:
        return not self._database.ask(LIVE, QUEUE)

    def recorded(self) -> int:
        return int(self._database.ask(SUCCEEDED, QUEUE))

    def call(self) -> None:
        """Enqueue one workflow, and wait for its result."""
        handle = self.client.enqueue(_options(QUEUE), 1)
        assert handle.get_result(polling_interval_sec=RESULT_POLL_SECONDS) == 1


def _options(queue: str) -> Any:
    return {"queue_name": queue, "workflow_name": "noop"}
