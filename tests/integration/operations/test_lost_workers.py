"""Lost workers: when a worker counts as lost, when none may, and which tasks are released."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import event, text

from orchestrator.maintenance.lost_workers import LostWorkers
from orchestrator.monitors import Monitors
from shared.broker import make_app
from shared.database.connections import make_engine, transaction
from shared.settings import Settings
from shared.tasks import lifecycle
from tests.integration.conftest import InlineWorker, Tasks, orchestrating
from tests.support.processes import wait_until
from workers.heartbeat import WORKER_ID, Heartbeat, report_lost_child

KNOWN = text(
    "INSERT INTO workers (id, name, capabilities, slots, pool, host, pid, version) "
    "VALUES (:id, 'late', '{work}', 1, 'solo', 'here', 1, '0')"
)


def test_no_worker_is_lost_after_a_database_freeze(inline_worker: InlineWorker, short_leases: Settings) -> None:
    """The loop is answered before the heartbeats that wait as well, and finds no worker that has beaten."""
    engine = make_engine(short_leases)
    loop = LostWorkers(short_leases, engine, Monitors(make_app(short_leases)))
    pauses: list[float] = []

    @event.listens_for(engine, "before_execute")
    def _stand_still(*_: Any) -> None:
        while pauses:
            time.sleep(pauses.pop())

    def look() -> str:
        loop._lose_workers()
        with inline_worker.engine.connect() as connection:
            return str(connection.scalar(text("SELECT status FROM workers WHERE id = :id"), {"id": inline_worker.id}))

    def beat() -> None:
        with inline_worker.engine.begin() as connection:
            connection.execute(text("UPDATE workers SET last_seen = now() WHERE id = :id"), {"id": inline_worker.id})

    steady = time.monotonic() + 1.2 * short_leases.lease_seconds
    while time.monotonic() < steady:
        beat()
        assert look() == "online"
        time.sleep(0.1)
    pauses.append(1.1 * short_leases.lease_seconds)
    assert look() == "online"
    wait_until(lambda: look() == "lost", "who never beats again is lost")
    engine.dispose()


def test_lost_tasks_are_released_while_the_healer_is_busy(
    tasks: Tasks, act: Any, inline_worker: InlineWorker, short_leases: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tasks.submit(act(), {})
    [message] = inline_worker.dispatch()
    over = threading.Event()
    monkeypatch.setattr(lifecycle, "heal_turns", lambda *_: over.wait(60))
    with transaction() as connection:
        lifecycle.claim(connection, task, message.claim, inline_worker.id)
        connection.execute(text("UPDATE workers SET last_seen = now()"))
    with orchestrating(short_leases):
        try:
            assert tasks.wait_for(task, "pending")["losses"] == 1
        finally:
            over.set()


def test_lost_child_releases_only_its_own_claims(
    inline_worker: InlineWorker, tasks: Tasks, act: Any, short_leases: Settings
) -> None:
    """Two workers have the message, and a child of the one that did not get the claim dies."""
    task = tasks.submit(act(), {})
    [message] = inline_worker.dispatch()
    consumer = SimpleNamespace(hub=None, event_dispatcher=None)
    late = Heartbeat(short_leases, SimpleNamespace(pool_cls="solo", consumer=consumer))

    def lose_child() -> str:
        report_lost_child({"task_id": str(task), "claim": message.claim}, "It was killed.")
        late._report()
        return str(tasks.get(task)["state"])

    with inline_worker.engine.begin() as connection:
        lifecycle.claim(connection, task, message.claim, inline_worker.id)
    assert lose_child() == "running"
    with inline_worker.engine.begin() as connection:
        connection.execute(KNOWN, {"id": WORKER_ID})
        connection.execute(text("UPDATE task_status SET worker_id = :id"), {"id": WORKER_ID})
    assert lose_child() == "waiting"
    assert tasks.get(task)["wait_reason"] == "backoff"
    late.engine.dispose()
