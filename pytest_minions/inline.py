"""Tasks in the test's process: the API in a thread, and worker and orchestrator where the test calls them.

The code is the one of the processes: `workers.minion.run` claims, runs and records each task, and the orchestrator's
duties do their rounds. Only the broker is left out, and with it Celery's time limits; webhooks and
alerts are not sent.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from uuid import UUID

import psycopg
import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import Engine, text

from orchestrator.api.app import create_app, release
from orchestrator.api.server import listen, server_config
from orchestrator.batches.batcher import Batcher
from orchestrator.bulk.runner import BulkRunner
from orchestrator.loops.loop import Loop
from orchestrator.maintenance.budget_keeper import BudgetKeeper
from orchestrator.maintenance.expirer import Expirer
from orchestrator.maintenance.resumer import Resumer
from orchestrator.maintenance.standing_budget_keeper import StandingBudgetKeeper
from orchestrator.maintenance.waker import Waker
from orchestrator.monitors import Monitors
from orchestrator.preparer import prepare_pending
from orchestrator.schedules.scheduler import Scheduler
from pytest_minions.installation import Installation
from pytest_minions.servers import Servers
from shared.database.connections import close_engine, get_engine
from shared.notifications import forget_publisher
from shared.settings import Settings, get_settings
from shared.tasks import lifecycle
from workers import minion
from workers.llm import accounts, anthropic

START_SECONDS = 20.0
LEASE = 3600.0
QUEUED = text("SELECT task_id, claim FROM task_status WHERE state = 'queued' ORDER BY queued_at, rank, task_id")
REGISTER = text(
    "INSERT INTO workers (id, name, capabilities, slots, pool, host, pid, version, last_seen) "
    "SELECT :id, 'inline', COALESCE(array_agg(DISTINCT served), '{}'), 1, 'solo', :host, :pid, '0', "
    "now() + interval '1 hour' FROM agent_versions, unnest(capabilities) AS served "
    "ON CONFLICT (id) DO UPDATE SET capabilities = excluded.capabilities, last_seen = excluded.last_seen"
)
WORKER_ID = UUID("00000000-0000-7000-8000-000000000001")


class InlineSystem:
    """Worker and orchestrator in the thread of the test."""

    kept: tuple[str, ...] = ()

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self.engine = engine
        monitors = Monitors(None)  # its events are for Flower, and nothing sends them
        self.duties: list[Loop] = [
            Scheduler(settings, engine),
            BulkRunner(settings, engine),
            Expirer(settings, engine, monitors),
            BudgetKeeper(settings, engine, monitors),
            StandingBudgetKeeper(settings, engine),
            Batcher(settings, engine),
            Resumer(settings, engine),
            Waker(engine),
        ]

    def serve(self, capabilities: Collection[str]) -> None:
        """Do nothing: its worker serves the capabilities of all agents."""

    def run_until_idle(self, timeout: float) -> None:
        """Run tasks until a round of the orchestrator finds none.

        Raises:
            AssertionError: there are still some after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while self._run_due():
            if time.monotonic() > deadline:
                raise AssertionError(f"There are still tasks to run after {timeout:g} s.")

    def close(self) -> None:
        """Close the connections of the duties."""
        for duty in self.duties:
            duty.close()

    def _run_due(self) -> bool:
        """Run what is due; return whether that was anything."""
        for duty in self.duties:
            _do(duty)
        while prepare_pending(self.engine):
            pass
        with self.engine.begin() as connection:
            connection.execute(REGISTER, {"id": WORKER_ID, "host": socket.gethostname(), "pid": os.getpid()})
            lifecycle.dispatch(connection, lease=LEASE, window=1000)
        with self.engine.connect() as connection:
            queued = connection.execute(QUEUED).all()
        for message in queued:
            minion.run(message.task_id, message.claim, WORKER_ID)
        return bool(queued)


def _do(duty: Loop) -> None:
    """Run a round. The server ends the session of a leader that was silent, as between two tests: lead again."""
    try:
        duty.run_once()
    except psycopg.Error:
        duty.run_once()


@contextmanager
def inline(servers: Servers) -> Iterator[Installation]:
    """Run the installation whose tasks run in this process."""
    variables = servers.variables("inline", 0)
    settings = _adopt(variables)
    system = InlineSystem(settings, get_engine())
    try:
        with _serving(settings) as url:
            yield Installation(servers, get_engine(), url, variables, system)
    finally:
        system.close()
        _forget()


def _adopt(variables: dict[str, str]) -> Settings:
    """Read the settings of this process from these variables, which its environment has only for that long: code under
    test may have its own DATABASE_URL.
    """
    _forget()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in variables.items():
            environment.setenv(name, value)
        return get_settings()


def _forget() -> None:
    """Forget settings, connections and the like."""
    anthropic.close_clients()
    accounts.forget()
    close_engine()
    forget_publisher()
    get_settings.cache_clear()


@contextmanager
def _serving(settings: Settings) -> Iterator[str]:
    """Serve the API from a thread; yield its address."""
    with listen(settings) as listener:
        server = _Server(settings, listener)
        server.start()
        try:
            server.wait_until_started()
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.stop()


class _Server(threading.Thread):
    """The thread of the API. It creates the application, whose Celery application becomes the thread's current one: in
    the main thread, it would replace the one of the code under test.
    """

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        super().__init__(name="minions-api", daemon=True)
        self.settings = settings
        self.listener = listener
        self.ready = threading.Event()
        self.app: FastAPI | None = None
        self.server: uvicorn.Server | None = None

    def run(self) -> None:
        self.app = create_app(self.settings)
        self.server = uvicorn.Server(server_config(self.app, self.settings))
        self.ready.set()
        self.server.run(sockets=[self.listener])

    def wait_until_started(self) -> None:
        """Return as soon as it answers."""
        deadline = time.monotonic() + START_SECONDS
        while not (self.ready.is_set() and self.server and self.server.started):
            if not self.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("The API does not start in this process; the log says why.")
            time.sleep(0.01)

    def stop(self) -> None:
        """End waiting requests, then the server."""
        if self.app is not None and self.server is not None:
            release(self.app)
            self.server.should_exit = True
        self.join(START_SECONDS)
