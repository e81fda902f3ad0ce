"""A dump of a system at work, restored into other servers: every task of the dump ends there, once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, create_engine, text

from orchestrator.local.embedded import EmbeddedServers, scratch_dir
from shared.access import actors
from shared.audit import log
from shared.tasks import lifecycle
from shared.tasks.states import FINAL, State
from tests.chaos import audit
from tests.conftest import Define
from tests.integration.conftest import Tasks
from tests.support.postgres_programs import run_program
from tests.support.processes import (
    ROOT,
    killed_on_exit,
    start_orchestrator,
    start_worker,
    wait_listening,
    wait_online,
    wait_until,
)

CHAIN = {"kind": "agent", "name": "Chain", "type": "function", "config": {"capabilities": ["work"]}}
SEALED = text("SELECT count(*) FROM audit_log WHERE position IS NOT NULL")
STATES = text("SELECT task_id, state FROM task_status")
ENDS = text("SELECT task_id, count(*) FROM chaos_log WHERE after = ANY (:final) GROUP BY task_id")
FINISH = {"final": sorted(FINAL)}


@contextmanager
def at_work(engine: Engine, folder: Path, capabilities: str, env: Mapping[str, str]) -> Iterator[str]:
    """Run an orchestrator and a worker with two slots; yield the API's address. Both are killed in the end."""
    orchestrator, worker = start_orchestrator(folder, env=env), start_worker(folder, capabilities, 2, env=env)
    with killed_on_exit(orchestrator, worker):
        url = wait_listening(orchestrator)
        wait_online(engine, worker)
        yield url


def minion(env: Mapping[str, str], *words: str) -> str:
    """Run a command that must succeed; return its output."""
    command = [sys.executable, "-m", "orchestrator.cli", *words]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def facts(tasks: Tasks, task: UUID) -> tuple[str, str]:
    """Return the state of a task, and the reason for which it waits."""
    found = tasks.get(task)
    return found["state"], found["wait_reason"]


def one_in_every_state(tasks: Tasks, act: Any, define: Define, calls: Path) -> dict[str, UUID]:
    """Submit tasks, and wait until each is in the state, or waits for the reason, of its name."""
    plain, asking, once = act(), act("Ask", config={"approval": True}), act("Once", config={"max_attempts": 1})
    define({**CHAIN, "relations": [{"agent": asking}]})
    later = datetime.now(UTC) + timedelta(hours=1)
    submitted = {
        "succeeded": tasks.submit(plain),
        "failed": tasks.submit(once, {"do": "fail"}),
        "cancelled": tasks.submit(plain, run_at=later),
        "scheduled": tasks.submit(plain, run_at=later),
        "pending": tasks.submit(act("Unserved", config={"capabilities": ["unserved"]})),
        "approval": tasks.submit(asking),
        "subtask": tasks.submit("Chain"),
        # Its tool comes back once it has been called twice.
        "running": tasks.submit(plain, {"do": "meet", "log": str(calls), "calls": 2, "patience": 600}),
    }
    with tasks.engine.begin() as connection:
        lifecycle.cancel(connection, submitted["cancelled"], reason="A test.")
        log.record(connection, actors.local_actor(), "task.cancel", submitted["cancelled"], namespace="default")
    for name, task in submitted.items():
        wait_until(lambda name=name, task=task: name in facts(tasks, task), f"{name}: {facts(tasks, task)}")
    wait_until(calls.exists, "the tool was called")
    wait_until(lambda: tasks.children(submitted["subtask"])[0]["wait_reason"] == "approval", "the sub-task waits")
    return submitted


def test_dump_of_a_system_at_work_is_restored(
    database: Engine, tool_package: Path, act: Any, define: Define, tasks: Tasks, tmp_path: Path
) -> None:
    calls, dump = tmp_path / "calls", tmp_path / "dump"
    with at_work(database, tmp_path, "work", {}):
        known = one_in_every_state(tasks, act, define, calls)
        with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            wait_until(lambda: connection.scalar(SEALED), "the audit log is sealed")
        many = [tasks.submit("Act", {"do": "sleep", "seconds": 0.2}) for _ in range(30)]
        wait_until(lambda: tasks.get(many[0])["state"] == "succeeded", "the first one has ended")
        run_program(database, "pg_dump", "--format=custom", f"--file={dump}")

    with scratch_dir() as folder, EmbeddedServers(folder, durable=False) as servers:
        addresses = servers.start()
        env = {"DATABASE_URL": addresses.database_url, "REDIS_URL": addresses.redis_url}
        restored = Tasks(create_engine(addresses.database_url))
        run_program(restored.engine, "pg_restore", "--no-owner", f"--dbname={restored.engine.url.database}", str(dump))
        minion(env, "migrate")
        with restored.engine.begin() as connection:
            before = dict(connection.execute(STATES).all())
            audit.install(connection)
        assert set(before.values()) == set(State) - {"expired"}

        with at_work(restored.engine, tmp_path, "work,unserved", env) as url:
            with restored.engine.begin() as connection:
                for waiting in (known["approval"], restored.children(known["subtask"])[0]["id"]):
                    lifecycle.decide(connection, waiting, "approve", who="test")
                lifecycle.cancel(connection, known["scheduled"], reason="The test does not wait for an hour.")
            wait_until(lambda: set(restored.count()) <= FINAL, "all tasks have ended", 60)
            minion(env, "audit", "verify")
            found = json.loads(minion({**env, "MINION_API_URL": url}, "doctor", "--json"))
            assert [finding for finding in found if finding["verdict"] == "failed"] == []
        with restored.engine.connect() as connection:
            ends = dict(connection.execute(ENDS, FINISH).all())
        restored.engine.dispose()

    assert ends == {task: 1 for task, state in before.items() if state not in FINAL}
    # An effect after the dump is repeated, with the key by which its receiver knows it.
    made = [line.split() for line in calls.read_text().splitlines()]
    assert len(made) == 2
    assert len({(task, key) for task, _, key, _ in made}) == 1
