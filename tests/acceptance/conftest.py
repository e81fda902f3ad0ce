"""The whole system as its users start it: the `minion` command in processes, in a separate data folder.

minion    runs the command: `minion("submit", "echo", "{}")` returns the finished process
up        `minion up` in the background, stopped afterwards; see `System`
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.local.embedded import scratch_dir

START_SECONDS = 120
# Settings that other tests of this process may have made.
OWN = ("DATABASE_URL", "REDIS_URL", "ANTHROPIC_", "SENTRY_DSN", "MINION_", "PYTEST", "PYTHONPATH")


@dataclass
class System:
    """A running `minion up`."""

    process: subprocess.Popen[str]
    environment: dict[str, str]
    folder: Path
    said: list[str]
    python: Path = Path(sys.executable)
    cwd: Path | None = None

    def run(self, *arguments: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run the `minion` command against this system."""
        return run_minion(self.environment, *arguments, input=input, python=self.python, cwd=self.cwd)

    def json(self, *arguments: str) -> Any:
        """Return the JSON that a command prints."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def processes(self) -> set[int]:
        """Return the processes with this data folder in their environment or on their command line (Linux)."""
        return {pid for pid in all_pids() if self.owns(pid)}

    def owns(self, pid: int) -> bool:
        """Return whether a process is one of them."""
        return str(self.folder).encode() in describe(pid)


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """Environment that names a separate data folder and nothing else."""
    with scratch_dir() as folder:
        yield clean_environment(folder / "data")


@pytest.fixture(scope="module")
def up(environment: dict[str, str]) -> Iterator[System]:
    """System that a module's tests share. Its default port is in use, and its commands are not given the actual one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        system = start_up({**environment, "MINION_API_PORT": str(taken.getsockname()[1])})
    system.environment = environment
    yield system
    stop(system)


def clean_environment(folder: Path) -> dict[str, str]:
    """Return this process's environment without the variables that name other servers."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OWN)}
    state = str(folder.parent / "state")
    return {**kept, "MINION_DATA_DIR": str(folder), "XDG_STATE_HOME": state, "PYTHONUNBUFFERED": "1"}


def run_minion(
    environment: dict[str, str],
    *arguments: str,
    input: str | None = None,
    timeout: float = 120,
    python: Path = Path(sys.executable),
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = [python, "-m", "orchestrator.cli", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, input=input, capture_output=True, text=True, timeout=timeout
    )


def start_up(
    environment: dict[str, str], *arguments: str, python: Path = Path(sys.executable), cwd: Path | None = None
) -> System:
    """Start `minion up` and wait until it reports that everything runs."""
    process = subprocess.Popen(
        [python, "-m", "orchestrator.cli", "up", *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if "Everything is running" in line:
            return System(process, environment, Path(environment["MINION_DATA_DIR"]), said, python, cwd)
    raise AssertionError(f"minion up ended with {process.wait()}:\n{''.join(said)}")


def stop(system: System) -> None:
    """Stop it as Ctrl-C does."""
    if system.process.poll() is None:
        system.process.send_signal(signal.SIGINT)
        system.process.wait(timeout=60)
    assert system.process.stdout is not None
    system.process.stdout.close()


def wait_until(done: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def describe(pid: int) -> bytes:
    """Return a process's command line and environment, or nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
