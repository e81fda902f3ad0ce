"""The whole system for a test: the orchestrator's loops, a worker process, and tasks to submit. See tests/README.md.

new_database   creates other databases on the same server; `empty_database` is one without a schema
tool_package   an installed package that offers the tool `act` (tests/support/minion_test_tools.py) to all processes
act            defines agents that run the tool `act`
loops          the orchestrator's loops, in this process, with short leases (one set per module)
worker         a Celery worker process with two slots that serves `work` and `other` (one per module)
inline_worker  a worker in the test's thread, for tests that need neither broker nor processes
heartbeat      the heartbeat of a worker's main process, which the test calls
driver         drives tasks through their lives one database call at a time, for tests of the lifecycle functions
tasks          submits tasks, waits for them and reads their records
messages_api   a local server of the Messages API, for the inline worker and for workers that are started
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import invalidate_caches
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from minions.testing import MessagesApi
from orchestrator.preparer import prepare_pending
from orchestrator.service import make_loops
from shared.contracts.requests import TaskRequest
from shared.database.connections import persist, transaction
from shared.notifications import make_redis
from shared.settings import Settings
from shared.tasks import lifecycle
from shared.tasks.lifecycle import Dispatched
from shared.tasks.queries import get_task, list_executions, list_steps
from shared.tasks.states import FINAL
from shared.tasks.submission import submit_within
from tests.conftest import Define
from tests.support.definitions import NOOP, agent_definition
from tests.support.lifecycle_driver import LifecycleDriver
from tests.support.model_client import use_messages_api
from tests.support.processes import ROOT, SHORT_LEASES, Process, killed_on_exit, start_worker, wait_online, wait_until
from workers import minion
from workers.heartbeat import WORKER_ID, Heartbeat

QUEUED = text("SELECT task_id, claim FROM task_status WHERE state = 'queued' ORDER BY queued_at, rank, task_id")
LEFT = text("SELECT EXISTS (SELECT 1 FROM task_status WHERE NOT state = ANY (:final))")
INLINE_WORKER = text(
    "INSERT INTO workers (name, capabilities, slots, pool, host, pid, version, last_seen) "
    "VALUES ('here', '{work,other}', 1, 'solo', 'here', 1, '0', now() + interval '1 day') RETURNING id"
)
HERE = text(
    "INSERT INTO workers (id, name, capabilities, slots, pool, host, pid, version, last_seen) "
    "VALUES (:id, 'this', '{work}', 1, 'prefork', 'here', 1, '0', now() + interval '1 day')"
)
ACT = {"kind": "tool", "name": "act", "type": "builtin", "builtin": "act", "effect": "idempotent"}


@dataclass(frozen=True)
class Tasks:
    """Tasks of the default namespace."""

    engine: Engine

    def submit(self, agent: str | None, value: Any = None, **fields: Any) -> UUID:
        """Submit one task."""
        given = {} if value is None else {"input": value}
        return self.submit_all([TaskRequest(agent=agent, **given, **fields)])[0]

    def submit_all(self, requests: list[TaskRequest]) -> list[UUID]:
        """Submit several tasks, all or none."""

        def accept() -> list[UUID]:
            with transaction() as connection:
                return [accepted.task_id for accepted in submit_within(connection, requests, submitted_by="test")]

        return persist(accept)

    def get(self, task: UUID) -> dict[str, Any]:
        """Return a task."""
        with self.engine.connect() as connection:
            return get_task(connection, task)

    def wait(self, task: UUID, timeout: float = 30.0) -> dict[str, Any]:
        """Wait until a task has ended; return it."""
        return self.wait_for(task, *FINAL, timeout=timeout)

    def wait_for(self, task: UUID, *states: str, timeout: float = 30.0) -> dict[str, Any]:
        """Wait until a task is in one of the states; return it."""

        def look() -> dict[str, Any] | None:
            with suppress(DBAPIError):
                found = self.get(task)
                return found if found["state"] in states else None
            return None

        return wait_until(look, f"task {task} {' or '.join(sorted(states))}", timeout)

    def run(self, agent: str | None, value: Any = None, **fields: Any) -> dict[str, Any]:
        """Submit a task and wait until it has ended; return it."""
        return self.wait(self.submit(agent, value, **fields))

    def executions(self, task: UUID) -> list[dict[str, Any]]:
        """Return the task's executions, oldest first."""
        with self.engine.connect() as connection:
            return list_executions(connection, task, limit=100).items

    def steps(self, task: UUID) -> list[dict[str, Any]]:
        """Return the task's journal."""
        with self.engine.connect() as connection:
            return list_steps(connection, task, limit=1000).items

    def children(self, task: UUID) -> list[dict[str, Any]]:
        """Return the task's sub-tasks, oldest first."""
        return [self.get(step["child_id"]) for step in self.steps(task) if step["kind"] == "subtask"]

    def count(self) -> dict[str, int]:
        """Count the tasks in each state."""
        with self.engine.connect() as connection:
            rows = connection.execute(text("SELECT state, count(*) FROM task_status GROUP BY state"))
            return dict(rows.all())

    def cancel(self, task: UUID) -> str:
        """Cancel a task."""
        with transaction() as connection:
            return lifecycle.cancel(connection, task, reason="Cancelled by the test.")


@dataclass
class InlineWorker:
    """A worker with one slot and its orchestrator, in the test's thread: it runs due tasks one after the other."""

    engine: Engine
    id: UUID

    def dispatch(self) -> list[Dispatched]:
        """Run one round of the orchestrator; return the messages that it would send to the broker."""
        prepare_pending(self.engine)
        with transaction() as connection:
            lifecycle.wake_due(connection)
            return lifecycle.dispatch(connection, lease=3600, window=1000)

    def run_all(self, timeout: float = 30.0) -> None:
        """Run tasks until all have ended."""
        wait_until(self._round, "all tasks ended", timeout)

    def run_due(self) -> None:
        """Run the tasks that are due now, and those that the API has queued at once."""
        self.dispatch()
        with self.engine.connect() as connection:
            queued = connection.execute(QUEUED).all()
        for message in queued:
            minion.run(message.task_id, message.claim, self.id)

    def _round(self) -> bool:
        self.run_due()
        with self.engine.connect() as connection:
            return not connection.scalar(LEFT, {"final": sorted(FINAL)})


@pytest.fixture
def new_database(database: Engine) -> Iterator[Callable[..., Engine]]:
    """Creates named databases on the same server, empty or as copies of a template."""
    with ExitStack() as dropped:
        outside = database.connect().execution_options(isolation_level="AUTOCOMMIT")
        dropped.enter_context(outside)

        def create(name: str, template: str = "template1") -> Engine:
            outside.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
            outside.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
            engine = create_engine(make_url(database.url).set(database=name))
            dropped.callback(outside.execute, text(f"DROP DATABASE {name} WITH (FORCE)"))
            dropped.callback(engine.dispose)
            return engine

        yield create


@pytest.fixture
def empty_database(new_database: Callable[..., Engine]) -> Engine:
    """Another database on the same server, without a schema."""
    return new_database("empty_one")


@pytest.fixture
def inline_worker(database: Engine, tool_package: Path) -> InlineWorker:
    """A worker in the test's thread that serves `work` and `other`."""
    with database.begin() as connection:
        return InlineWorker(database, connection.scalar(INLINE_WORKER))


@pytest.fixture
def heartbeat(inline_worker: InlineWorker, settings: Settings) -> Iterator[Heartbeat]:
    """The heartbeat of a worker in this process, which is registered."""
    with inline_worker.engine.begin() as connection:
        connection.execute(HERE, {"id": WORKER_ID})
    made = Heartbeat(
        settings, SimpleNamespace(pool_cls="prefork", consumer=SimpleNamespace(hub=None, event_dispatcher=None))
    )
    yield made
    made.engine.dispose()


@pytest.fixture(scope="session")
def tool_package(servers: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An installed package that offers the tool `act`, and the tasks of examples/moving_from_celery."""
    folder = tmp_path_factory.mktemp("offered")
    about = folder / "minion_test_tools-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: minion-test-tools\nVersion: 1.0\nLicense-Expression: MIT\n"
    )
    offered = {"act": "minion_test_tools:act"} | {
        name: f"shop_tasks:{name}.tool" for name in ("send_receipt", "report")
    }
    lines = [f"{name} = {place}\n" for name, place in offered.items()]
    (about / "entry_points.txt").write_text("".join(["[minions.tools]\n", *lines]))
    for module in ("tests/support/minion_test_tools.py", "examples/moving_from_celery/shop_tasks.py"):
        (folder / Path(module).name).write_text((ROOT / module).read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
        patch.syspath_prepend(folder)
        invalidate_caches()
        yield folder


@pytest.fixture(scope="session")
def short_leases(servers: Any) -> Settings:
    """The session's settings with the leases that the worker processes of the tests have."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SHORT_LEASES.items():
            patch.setenv(name, value)
        return Settings()


@contextmanager
def orchestrating(settings: Settings) -> Iterator[None]:
    """Run the orchestrator's loops."""
    running = make_loops(settings)
    for loop in running:
        loop.start()
    try:
        yield
    finally:
        for loop in running:
            loop.stopping.set()
        for loop in running:
            loop.stop()


@pytest.fixture(scope="module")
def loops(short_leases: Settings) -> Iterator[None]:
    """The orchestrator's loops."""
    with orchestrating(short_leases):
        yield


@pytest.fixture(scope="module")
def worker_process(tool_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The module's worker."""
    process = start_worker(tmp_path_factory.mktemp("worker"), "work,other", 2)
    with killed_on_exit(process):
        yield process
        process.stop()


@pytest.fixture
def worker(worker_process: Process, database: Engine, request: pytest.FixtureRequest) -> Iterator[Process]:
    """The module's worker, registered on the empty tables."""
    written = len(worker_process.output())
    wait_online(database, worker_process)
    yield worker_process
    print(f"--- {worker_process.log.name}\n{worker_process.output()[written:][-6000:]}")


@pytest.fixture
def driver(database: Engine, define: Define) -> LifecycleDriver:
    """Drives tasks of the agents `A` and `B` through their lives, one database call at a time."""
    define(NOOP, agent_definition("A"), agent_definition("B"))
    return LifecycleDriver(database)


@pytest.fixture
def tasks(database: Engine) -> Tasks:
    """Tasks on empty tables."""
    return Tasks(database)


@pytest.fixture
def messages_api(monkeypatch: pytest.MonkeyPatch, database: Engine) -> Iterator[MessagesApi]:
    """A local server of the Messages API; a test sets its `script` of replies."""
    with use_messages_api(MessagesApi(), monkeypatch) as server:
        yield server
        # Undo the test's own changes first.
        monkeypatch.undo()


@pytest.fixture
def act(define: Define) -> Any:
    """Defines agents that run the tool `act`: `act("Name", config={…}, **agent_fields)`."""

    def make(
        name: str = "Act", *, effect: str = "idempotent", config: dict[str, Any] | None = None, **fields: Any
    ) -> str:
        define(
            {**ACT, "effect": effect},
            {
                "kind": "agent",
                "name": name,
                "type": "function",
                "tool": "act",
                "config": {"capabilities": ["work"], "retry_backoff": 0.1, "retry_backoff_max": 0.2, **(config or {})},
                **fields,
            },
        )
        return name

    return make


def everything_written(database: Engine, capsys: Any) -> str:
    """Return all rows of the database, all keys and values in Redis, and the logs as text."""
    with database.connect() as connection:
        tables = connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all()
        rows = [str(connection.execute(text(f"SELECT t::text FROM {table} t")).all()) for table in tables]
    with make_redis() as broker:
        read = {b"string": broker.get, b"hash": broker.hgetall, b"set": broker.smembers}
        kept = [f"{key} {read[broker.type(key)](key)}" for key in broker.scan_iter()]
    captured = capsys.readouterr()
    return "\n".join([*rows, *kept, captured.out, captured.err])
