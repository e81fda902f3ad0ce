"""The maintenance loops: tasks of lost workers, lost messages and deadlines."""

from __future__ import annotations

import pkgutil
import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import import_module
from inspect import isabstract
from pathlib import Path
from typing import Any, Never

import pytest
from sqlalchemy import Engine, text

import orchestrator
from orchestrator.loops.loop import Loop
from orchestrator.service import make_loops
from shared.broker import make_app, publish
from shared.database.connections import transaction
from shared.notifications import make_redis
from shared.settings import Settings
from shared.tasks import lifecycle
from shared.tasks.lifecycle import Dispatched
from tests.integration.conftest import InlineWorker, Tasks
from tests.support.processes import Process, killed_on_exit, start_worker, wait_online, wait_until

# As if the dispatcher had sent a message.
QUEUE = text(
    "UPDATE task_status SET state = 'queued', capability = 'work', published = 1, published_at = now() "
    "RETURNING task_id"
)

pytestmark = pytest.mark.usefixtures("loops")


@pytest.fixture
def doomed(tool_package: Path, tmp_path: Path, database: Engine) -> Iterator[Process]:
    """A worker for `alone` that is going to die."""
    process = start_worker(tmp_path, "alone")
    with killed_on_exit(process):
        wait_online(database, process)
        yield process


def status_of(engine: Engine, process: Process) -> str:
    with engine.connect() as connection:
        return str(connection.scalar(text("SELECT status FROM workers WHERE pid = :pid"), {"pid": process.pid}))


def test_every_loop_is_started(short_leases: Settings) -> None:
    for module in pkgutil.walk_packages(orchestrator.__path__, "orchestrator."):
        import_module(module.name)
    traced = short_leases.model_copy(update={"otel_exporter_otlp_endpoint": "http://127.0.0.1:1"})
    assert {type(loop) for loop in make_loops(traced)} == {*concrete(Loop)}
    started = {loop.name for loop in make_loops(short_leases)}
    assert {loop.name for loop in concrete(Loop)} - started == {"tracer"}, "it is for installations with an endpoint"
    assert {thread.name for thread in threading.enumerate()} >= started


def concrete(kind: type[Loop]) -> Iterator[type[Loop]]:
    """The classes of the product below this one that can be instantiated."""
    for below in kind.__subclasses__():
        yield from concrete(below)
        if below.__module__.startswith("orchestrator.") and not isabstract(below):
            yield below


def test_tasks_of_killed_worker_run_again(tasks: Tasks, act: Any, doomed: Process, tmp_path: Path) -> None:
    task = tasks.submit(act(config={"capabilities": ["alone"]}), {"do": "sleep", "seconds": 1})
    tasks.wait_for(task, "running")
    doomed.kill()
    with killed_on_exit(start_worker(tmp_path, "alone")):
        ended = tasks.wait(task)
    assert (ended["state"], ended["attempts"], ended["losses"], ended["claim"]) == ("succeeded", 0, 1, 2)
    lost, _ = tasks.executions(task)
    assert lost["outcome"] == "lost"
    assert "was lost while it ran the task" in lost["error"]["message"]
    assert status_of(tasks.engine, doomed) == "lost"


def test_task_unknown_to_its_worker_is_released(tasks: Tasks, act: Any, worker: Process) -> None:
    task = tasks.submit(act(config={"capabilities": ["nobody"]}), {})
    with tasks.engine.begin() as connection:
        # As if the child's claim had been committed, and its answer lost.
        connection.execute(QUEUE)
        holder = connection.scalar(text("SELECT id FROM workers WHERE pid = :pid"), {"pid": worker.pid})
        lifecycle.claim(connection, task, 0, holder)
    ended = tasks.wait(task)
    assert (ended["state"], ended["losses"], ended["claim"]) == ("succeeded", 1, 2)


def test_task_that_keeps_losing_workers_fails(tasks: Tasks, inline_worker: InlineWorker, act: Any) -> None:
    task = tasks.submit(act(config={"capabilities": ["nobody"], "max_attempts": 1}), {})
    for _ in range(3):
        tasks.wait_for(task, "pending")
        claim = tasks.get(task)["claim"]
        with transaction() as connection:
            connection.execute(text("UPDATE task_status SET state = 'queued'"))
            connection.execute(text("UPDATE workers SET status = 'online', last_seen = now()"))
            lifecycle.claim(connection, task, claim, inline_worker.id)
            connection.execute(text("UPDATE task_status SET updated_at = now() - interval '2 days'"))
    ended = tasks.wait(task)
    assert (ended["state"], ended["losses"], ended["attempts"]) == ("failed", 3, 0)
    assert ended["error"]["type"] == "worker_lost"


def test_lost_message_is_republished_under_the_same_claim(tasks: Tasks, act: Any, worker: Process) -> None:
    act()
    with tasks.engine.begin() as connection:
        # Queued, and no message in the broker.
        connection.execute(text("SELECT minion_submit('Act')"))
        task = connection.scalar(QUEUE)
    ended = tasks.wait(task)
    assert (ended["state"], ended["claim"]) == ("succeeded", 1)


def test_lost_message_is_republished_while_the_healer_fails(
    tasks: Tasks, act: Any, worker: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def fail(*_: Any, **__: Any) -> Never:
        failed.set()
        raise RuntimeError("broken")

    monkeypatch.setattr(lifecycle, "heal_waits", fail)
    assert failed.wait(60)
    act()
    with tasks.engine.begin() as connection:
        connection.execute(text("SELECT minion_submit('Act')"))
        task = connection.scalar(QUEUE)
    assert tasks.wait(task)["state"] == "succeeded"


def test_duplicate_messages_run_once(
    tasks: Tasks, act: Any, worker: Process, tmp_path: Path, settings: Settings
) -> None:
    log = tmp_path / "log"
    task = tasks.submit(act(), {"log": str(log)})
    tasks.wait(task)
    with make_redis() as broker:
        assert broker.llen("work") == 0
    message = Dispatched(task, 0, "work", "Act", 10, 20, 0)
    with make_app(settings) as app:
        publish(app, [message] * 5)
    wait_until(lambda: worker.output().count('"skipped"') >= 5, "five duplicates refused")
    assert len(log.read_text().splitlines()) == 1
    assert len(tasks.executions(task)) == 1


def test_deadline_ends_a_pending_task(tasks: Tasks, act: Any) -> None:
    act(config={"capabilities": ["nobody"]})
    task = tasks.submit("Act", {}, deadline=datetime.now(UTC) + timedelta(seconds=0.5))
    ended = tasks.wait(task)
    assert (ended["state"], ended["error"]["type"]) == ("expired", "expired")


def test_deadline_ends_a_running_task(tasks: Tasks, act: Any, worker: Process) -> None:
    act()
    task = tasks.submit("Act", {"do": "sleep", "seconds": 3}, deadline=datetime.now(UTC) + timedelta(seconds=1.5))
    tasks.wait_for(task, "running")
    ended = tasks.wait(task)
    assert ended["state"] == "expired"
    wait_until(lambda: "claim_lost" in worker.output(), "the minion is told")
    assert [execution["outcome"] for execution in tasks.executions(task)] == ["expired"]


def test_worker_without_row_registers_again(tasks: Tasks, act: Any, worker: Process) -> None:
    with tasks.engine.begin() as connection:
        connection.execute(text("DELETE FROM workers"))
    wait_online(tasks.engine, worker)
    assert tasks.run(act(), {})["state"] == "succeeded"


def test_frozen_worker_continues(tasks: Tasks, act: Any, worker: Process) -> None:
    worker.signal(signal.SIGSTOP)
    wait_until(lambda: status_of(tasks.engine, worker) == "lost", "the worker is lost")
    worker.signal(signal.SIGCONT)
    wait_online(tasks.engine, worker)
    assert tasks.run(act(), {})["state"] == "succeeded"
