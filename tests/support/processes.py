"""Real processes for the tests: workers and orchestrators that are waited for, killed and shown when a test fails."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from tests.support.forks import ROOT, Fork, end_with_parent, nursery_of, nursery_of_lanes
from tests.support.lanes import NURSERY

# Short leases, so that nobody waits ten seconds for a lost worker.
SHORT_LEASES = {
    "MINION_HEARTBEAT_SECONDS": "0.2",
    "MINION_LEASE_SECONDS": "3",
    "MINION_LOST_MESSAGE_SECONDS": "0.5",
    "MINION_CANCEL_GRACE_SECONDS": "1",
}
ONLINE = text("SELECT 1 FROM workers WHERE pid = :pid AND status = 'online'")
Result = TypeVar("Result")


def wait_until(condition: Callable[[], Result], what: str, timeout: float = 30.0) -> Result:
    """Waits for the condition to hold, and returns its value."""
    began = time.monotonic()
    while not (value := condition()):
        waited = time.monotonic() - began
        assert waited < timeout, f"not within {timeout:g} s: {what}"
        # What takes long is looked at less often.
        time.sleep(min(0.02 + waited / 50, 0.1))
    return value


class Process:
    """A child process in a group of its own, with its output in a file.

    Args:
        forked: `command` is a Python program that a nursery knows; it starts in a fraction of the time.
    """

    def __init__(
        self,
        command: list[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        *,
        cwd: Path = ROOT,
        forked: bool = False,
    ) -> None:
        self.log = log
        environment = {**os.environ, "PYTHONWARNINGS": "default", **(env or {})}
        with log.open("ab") as output:
            if forked:
                _, _, program, *arguments = command
                self.popen: Fork | subprocess.Popen[bytes] = nursery_of(program).start(
                    arguments, environment, output.fileno()
                )
                return
            self.popen = subprocess.Popen(
                command,
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent if sys.platform == "linux" else None,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def output(self) -> str:
        """All it has written so far."""
        return self.log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        """Sends a signal to the process itself, not to its children."""
        self.popen.send_signal(number)

    def wait(self, timeout: float = 30.0) -> int:
        """Its exit status."""
        return self.popen.wait(timeout)

    def stop(self, timeout: float = 20.0) -> int:
        """Asks it to end, and ends it if it does not."""
        if self.running:
            self.signal(signal.SIGTERM)
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"process did not stop within {timeout:g} s:\n{self.output()[-4000:]}") from None

    def kill(self) -> None:
        """kill -9 of the whole group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait(10)


def start_worker(
    folder: Path,
    capabilities: str,
    slots: int = 1,
    *,
    env: Mapping[str, str] | None = None,
    options: Any = (),
    cwd: Path = ROOT,
    fresh: bool = False,
) -> Process:
    """A Celery worker, started as plain Celery; of another release where its tree is the working directory.

    Args:
        fresh: start a new interpreter. Others are forks of a process that has imported the product.
    """
    number = len(list(folder.glob("worker-*.log")))
    command = [sys.executable, "-m", "celery", "-A", "workers.app", "worker", "-Q", capabilities, "-c", str(slots)]
    name = f"test{os.getpid()}.{number}@%h"
    forked = _may_fork(cwd, fresh)
    lanes = {NURSERY: nursery_of_lanes()} if forked else {}
    return Process(
        [*command, "-n", name, "--without-mingle", *options],
        folder / f"worker-{number}.log",
        {**SHORT_LEASES, **lanes, **(env or {})},
        cwd=cwd,
        forked=forked,
    )


def start_orchestrator(
    folder: Path, *, env: Mapping[str, str] | None = None, cwd: Path = ROOT, fresh: bool = False
) -> Process:
    """The orchestrator with its API on a free port; `cwd` and `fresh` as for a worker."""
    number = len(list(folder.glob("orchestrator-*.log")))
    variables = {**SHORT_LEASES, "MINION_API_PORT": "0", **(env or {})}
    command = [sys.executable, "-m", "orchestrator.cli", "orchestrator"]
    return Process(command, folder / f"orchestrator-{number}.log", variables, cwd=cwd, forked=_may_fork(cwd, fresh))


def _may_fork(cwd: Path, fresh: bool) -> bool:
    return sys.platform == "linux" and cwd == ROOT and not fresh


def ready(process: Process) -> bool:
    """Return whether an orchestrator has started its API."""
    assert process.running, f"the orchestrator ended:\n{process.output()[-4000:]}"
    return "api_listening" in process.output()


def wait_listening(process: Process, timeout: float = 30.0) -> str:
    """Waits until an orchestrator has started its API, and returns its address."""
    wait_until(lambda: ready(process), "the API listens", timeout)
    return re.findall(r"http://127\.0\.0\.1:\d+", process.output())[0]


def online(process: Process, engine: Engine) -> bool:
    """Return whether the row of a worker says that it is online."""
    assert process.running, f"the worker ended:\n{process.output()[-4000:]}"
    try:
        with engine.connect() as connection:
            return connection.scalar(ONLINE, {"pid": process.pid}) is not None
    except DBAPIError:
        return False


def wait_online(engine: Engine, *processes: Process) -> None:
    """Waits until workers have registered."""
    for process in processes:
        wait_until(lambda process=process: online(process, engine), f"worker online:\n{process.output()[-4000:]}", 90)


@contextmanager
def killed_on_exit(*processes: Process) -> Iterator[None]:
    """Kills what is left of the processes, and prints the ends of their logs, which pytest shows when a test fails."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            print(f"--- {process.log.name}\n{process.output()[-6000:]}")
