"""Flower shows tasks under their agents' names, to whoever knows the password."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.integration.conftest import Tasks
from tests.processes import Process, ended_at_last, wait_until

pytestmark = pytest.mark.usefixtures("loops")


@pytest.fixture
def flower(worker: Process, tmp_path: Path) -> Iterator[httpx2.Client]:
    """Flower, started as plain Celery."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "celery", "-A", "workers.app", "flower", "--address=127.0.0.1", f"--port={port}"]
    process = Process(command, tmp_path / "flower.log", {"FLOWER_BASIC_AUTH": "minion:secret"})
    client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", auth=("minion", "secret"), trust_env=False)
    with ended_at_last(process), client:
        wait_until(lambda: answers(client, process), "Flower sees the worker")
        yield client


def answers(client: httpx2.Client, process: Process) -> bool:
    assert process.running, process.output()
    try:
        return bool(client.get("/api/workers?refresh=1").json())
    except httpx2.TransportError:
        return False


def test_tasks_are_listed_by_agent(flower: httpx2.Client, tasks: Tasks, act: Any) -> None:
    done, failed = tasks.run(act("SearchAgent"), {}), tasks.run(act("Refuser"), {"do": "refuse"})

    def listed() -> dict[str, Any] | None:
        found = {task["name"]: task for task in flower.get("/api/tasks").json().values()}
        return found if {"SearchAgent", "Refuser"} <= found.keys() else None

    shown = wait_until(listed, "both tasks are listed")
    assert str(done["id"]) in shown["SearchAgent"]["kwargs"]
    assert str(failed["id"]) in shown["Refuser"]["kwargs"]
    assert shown["SearchAgent"]["args"] == ""


def test_nobody_looks_without_the_password(flower: httpx2.Client) -> None:
    for path in ("/", "/tasks", "/api/tasks", "/api/workers"):
        assert flower.get(path, auth=None).status_code == 401
        assert flower.get(path, auth=("minion", "wrong")).status_code == 401
