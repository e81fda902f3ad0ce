"""Servers and processes that fail during work: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from orchestrator.local.embedded import EmbeddedServers
from shared.contracts.requests import TaskRequest
from shared.notifications import make_redis
from tests.integration.conftest import Tasks
from tests.support.processes import (
    ROOT,
    Process,
    killed_on_exit,
    start_orchestrator,
    start_worker,
    wait_listening,
    wait_online,
    wait_until,
)

EXECUTED = text("SELECT task_id, count(*) FROM executions WHERE outcome = 'succeeded' GROUP BY task_id")

KNOWN = text("SELECT EXISTS (SELECT 1 FROM workers WHERE :task = ANY (active))")


@pytest.fixture
def crowd(tool_package: Path, tmp_path: Path, database: Engine) -> Iterator[Any]:
    """Starts workers with one slot, and kills what is left of them."""
    with ExitStack() as stack:

        def start(capability: str = "work", **options: Any) -> Process:
            process = start_worker(tmp_path, capability, **options)
            stack.enter_context(killed_on_exit(process))
            return process

        yield start


def submit_many(tasks: Tasks, number: int, agent: str, value: Any) -> None:
    tasks.submit_all([TaskRequest(agent=agent, input=value) for _ in range(number)])


def succeeded(tasks: Tasks) -> int:
    """Return how many have succeeded so far; None while the database is away."""
    try:
        return tasks.count().get("succeeded", 0)
    except DBAPIError:
        return 0


def wait_for_all(tasks: Tasks, number: int, timeout: float = 60.0) -> None:
    wait_until(lambda: succeeded(tasks) == number, f"{number} tasks succeeded", timeout)
    with tasks.engine.connect() as connection:
        executed = dict(connection.execute(EXECUTED).all())
    assert len(executed) == number
    assert set(executed.values()) == {1}


def known_to_run(engine: Engine, task: UUID) -> bool:
    with engine.connect() as connection:
        return bool(connection.scalar(KNOWN, {"task": str(task)}))


@contextmanager
def without(server: Any) -> Iterator[None]:
    """Kills a server, and starts it again after the block."""
    server.kill()
    try:
        yield
    finally:
        server.start()


@pytest.mark.usefixtures("loops")
@pytest.mark.soak
def test_500_tasks_survive_a_flushed_broker_and_a_killed_worker(
    tasks: Tasks, act: Any, crowd: Any, database: Engine
) -> None:
    doomed, survivor = crowd(), crowd()
    wait_online(database, doomed, survivor)
    submit_many(tasks, 500, act(), {"do": "sleep", "seconds": 0.01})
    wait_until(lambda: succeeded(tasks) > 100, "100 done")
    doomed.kill()
    wait_until(lambda: succeeded(tasks) > 200, "200 done")
    with make_redis() as broker:
        broker.flushall()
    wait_for_all(tasks, 500)


@pytest.mark.usefixtures("loops")
def test_broker_restart_loses_nothing(tasks: Tasks, act: Any, worker: Process, servers: EmbeddedServers) -> None:
    long = tasks.submit(act("Long"), {"do": "sleep", "seconds": 5})
    tasks.wait_for(long, "running")
    submit_many(tasks, 100, act(), {"do": "sleep", "seconds": 0.01})
    wait_until(lambda: succeeded(tasks) > 10, "10 done")
    with without(servers.valkey):
        wait_until(lambda: "Connection to broker lost" in worker.output(), "the worker notices")
        unserved = tasks.submit(act(), {})
    wait_for_all(tasks, 102)
    assert worker.running
    assert len(tasks.executions(long)) == 1
    assert tasks.get(unserved)["state"] == "succeeded"


@pytest.mark.usefixtures("loops")
def test_a_broker_that_refuses_writes_does_not_end_the_worker(tasks: Tasks, act: Any, worker: Process) -> None:
    before = len(worker.output())
    task = tasks.submit(act("Long"), {"do": "sleep", "seconds": 3})
    tasks.wait_for(task, "running")
    with make_redis() as broker:
        broker.config_set("min-replicas-to-write", 1)
        try:
            lost = "Connection to broker lost"
            wait_until(lambda: not worker.running or lost in worker.output()[before:], "the worker is refused")
        finally:
            broker.config_set("min-replicas-to-write", 0)
    assert tasks.wait(task)["state"] == "succeeded"
    assert worker.running


@pytest.mark.usefixtures("loops")
def test_time_limits_hold_when_the_broker_restarts(
    tasks: Tasks, act: Any, worker: Process, servers: EmbeddedServers
) -> None:
    config = {"soft_time_limit": 2, "time_limit": 4, "max_attempts": 1}
    hard = tasks.submit(act("Hard", config=config), {"do": "hang"})
    soft = tasks.submit(act("Soft", config=config), {"do": "sleep", "seconds": 60})
    tasks.wait_for(hard, "running")
    tasks.wait_for(soft, "running")
    with without(servers.valkey):
        pass
    assert "soft_time_limit" in tasks.wait(soft, timeout=20)["error"]["message"]
    assert "hard time_limit" in tasks.wait(hard, timeout=20)["error"]["message"]
    assert tasks.run(act(), {})["state"] == "succeeded"


@pytest.mark.usefixtures("loops")
def test_a_database_that_restarts_is_waited_for(
    tasks: Tasks, act: Any, worker: Process, servers: EmbeddedServers
) -> None:
    submit_many(tasks, 200, act(config={"max_attempts": 1}), {"do": "sleep", "seconds": 0.01})
    wait_until(lambda: succeeded(tasks) > 20, "20 done")
    with without(servers.postgres):
        wait_until(lambda: "database_away" in worker.output(), "the worker notices")
    wait_for_all(tasks, 200)
    assert worker.running


@pytest.mark.usefixtures("loops")
def test_task_during_database_restart_is_recorded(
    tasks: Tasks, act: Any, worker: Process, servers: EmbeddedServers
) -> None:
    task = tasks.submit(act(), {"do": "sleep", "seconds": 2})
    tasks.wait_for(task, "running")
    with without(servers.postgres):
        pass
    assert tasks.wait(task)["state"] == "succeeded"
    assert len(tasks.executions(task)) == 1


def test_an_orchestrator_that_is_killed_is_replaced(tasks: Tasks, act: Any, worker: Process, tmp_path: Path) -> None:
    first = start_orchestrator(tmp_path)
    with killed_on_exit(first):
        submit_many(tasks, 600, act(), {"do": "sleep", "seconds": 0.01})
        wait_until(lambda: succeeded(tasks) > 20, "20 done")
        first.kill()
    assert tasks.count()["pending"] > 20
    second = start_orchestrator(tmp_path)
    with killed_on_exit(second):
        wait_for_all(tasks, 600)
        assert second.stop() == 0


def test_two_orchestrators_share_the_work(tasks: Tasks, act: Any, worker: Process, tmp_path: Path) -> None:
    pair = [start_orchestrator(tmp_path), start_orchestrator(tmp_path)]
    with killed_on_exit(*pair):
        for process in pair:
            wait_listening(process)
        submit_many(tasks, 200, act(), {})
        wait_for_all(tasks, 200)
        with tasks.engine.connect() as connection:
            assert connection.scalar(text("SELECT max(claim) FROM task_status")) == 1


def test_a_server_that_is_down_at_the_start(tmp_path: Path, settings: Any) -> None:
    nowhere = {
        "DATABASE_URL": ("The database", f"postgresql:///x?host={tmp_path}"),
        "REDIS_URL": ("The broker", f"unix://{tmp_path}/none.sock"),
    }
    started = []
    for missing, (what, address) in nowhere.items():
        env = {missing: address, "MINION_CONNECT_ATTEMPTS": "2"}
        started += [
            (start_orchestrator(tmp_path, env=env, fresh=True), what),
            (start_worker(tmp_path, "work", env=env, fresh=True), what),
        ]
    with killed_on_exit(*(process for process, _ in started)):
        for process, what in started:
            assert process.wait(90) == 69
            assert f"{what} cannot be reached after 2 attempts" in process.output()
            assert "Traceback" not in process.output()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("REDIS_URL", "nonsense", "REDIS_URL is not the address of a broker"),
        ("DATABASE_URL", "nonsense", "DATABASE_URL is not the address of a database"),
        ("MINION_MAX_INPUT_BYTES", "many", "MINION_MAX_INPUT_BYTES: Input must be a valid integer"),
    ],
)
def test_worker_with_wrong_setting_reports_it(settings: Any, name: str, value: str, words: str) -> None:
    command = [sys.executable, "-m", "celery", "-A", "workers.app", "worker", "-Q", "work"]
    ended = subprocess.run(
        command, env={**os.environ, name: value}, capture_output=True, text=True, cwd=ROOT, timeout=90
    )
    assert ended.returncode == 78
    assert ended.stderr.count(words) + ended.stdout.count(words) == 1
    assert "Traceback" not in ended.stderr + ended.stdout


def test_a_worker_that_is_asked_to_stop_finishes_its_task(
    tasks: Tasks, act: Any, crowd: Any, database: Engine, loops: None
) -> None:
    leaving = crowd("alone")
    wait_online(database, leaving)
    task = tasks.submit(act(config={"capabilities": ["alone"]}), {"do": "sleep", "seconds": 1})
    tasks.wait_for(task, "running")
    assert leaving.stop() == 0
    assert tasks.get(task)["state"] == "succeeded"


def test_a_worker_in_a_hurry_hands_back_uncharged(
    tasks: Tasks, act: Any, crowd: Any, database: Engine, loops: None
) -> None:
    leaving = crowd("alone", options=["--", "worker.soft_shutdown_timeout=0.5"])
    wait_online(database, leaving)
    task = tasks.submit(act(config={"capabilities": ["alone"]}), {"do": "sleep", "seconds": 2})
    wait_until(lambda: known_to_run(database, task), "the worker's main process knows of the task")
    leaving.signal(signal.SIGQUIT)
    leaving.wait()
    assert tasks.get(task)["attempts"] == 0
    assert tasks.executions(task)[0]["outcome"] == "handed_back"
    wait_online(database, crowd("alone"))
    assert tasks.wait(task)["state"] == "succeeded"
