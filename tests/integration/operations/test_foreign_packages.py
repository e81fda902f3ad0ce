"""Users' folders with packages named like ours: processes that we start do not import them, and errors name them."""

from __future__ import annotations

import importlib.util
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import Engine

from orchestrator.local.child import Child
from tests.integration.conftest import Tasks
from tests.support.processes import ONLINE, ROOT, wait_until

OURS = ("migrations", "minions", "orchestrator", "shared", "workers")
FOREIGN = 'raise SystemExit("a foreign package was imported")\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a package of each of our names, and modules that Celery and Flower look for."""
    for name in OURS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(FOREIGN)
    for name in ("celeryconfig", "flowerconfig", "celery", "redis", "flower"):
        (tmp_path / f"{name}.py").write_text(FOREIGN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running(child: Child) -> Iterator[Child]:
    child.start()
    try:
        yield child
    finally:
        child.signal(signal.SIGKILL)
        child.wait(20)
        print(child.last_words(50))


@pytest.mark.usefixtures("loops", "folder", "tool_package")
def test_processes_of_up_do_not_import_from_the_current_folder(
    database: Engine, tasks: Tasks, act: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """They find the tools of installed packages all the same."""
    logs, port = tmp_path_factory.mktemp("logs"), free_port()
    worker = Child("worker", ["worker", "work", "-c", "1", "-P", "solo"], {}, logs, orphaned=signal.SIGKILL)
    password = {"MINION_FLOWER_PASSWORD": "x" * 16}
    flower = Child("flower", ["flower", "--port", str(port)], password, logs, orphaned=signal.SIGKILL)

    def online() -> bool:
        assert worker.running, worker.last_words()
        assert worker.process is not None
        with database.connect() as connection:
            return connection.scalar(ONLINE, {"pid": worker.process.pid}) is not None

    def answers() -> bool:
        assert flower.running, flower.last_words()
        try:
            return httpx2.get(f"http://127.0.0.1:{port}/healthcheck", trust_env=False).status_code == 200
        except httpx2.TransportError:
            return False

    with running(worker), running(flower):
        wait_until(online, "the worker online", 60)
        assert tasks.run(act(), {"answer": 5})["output"] == 5
        wait_until(answers, "Flower answers", 60)


@pytest.mark.parametrize("command", [("-P", "-m", "orchestrator.cli", "--help"), ("-P", "-c", "import workers.app")])
@pytest.mark.parametrize("name", ["shared", "migrations", "minions"])
def test_foreign_package_on_the_path_is_named(tmp_path: Path, name: str, command: tuple[str, ...]) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    done = subprocess.run(
        [sys.executable, *command],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert f"foreign package {name!r}, {tmp_path / name / '__init__.py'}" in last
    assert ("minions-client" if name == "minions" else str(ROOT / name)) in last


def test_a_missing_client_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "minions" else find_spec(name))
    with pytest.raises(ImportError, match="minions-client is missing"):
        runpy.run_path(str(ROOT / "shared" / "siblings.py"))
