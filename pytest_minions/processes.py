"""Orchestrator and workers as child processes. They end with the test's process, even if it is killed."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Engine, create_engine, text

from orchestrator.local.child import Child
from orchestrator.local.system import OF_API, OF_FLOWER, OF_MINIONS
from pytest_minions.installation import Installation
from pytest_minions.servers import Servers

Found = TypeVar("Found")
START_SECONDS = 90.0
# A worker that has tasks sleeps for 10 s before a cold shutdown. Nothing of a test survives, so it is killed earlier.
STOP_SECONDS = 3.0
LOOK_SECONDS = 0.02
SLOTS = 2
LISTENING = re.compile(r"(?m)^.*\bapi_listening\b.*$")
ADDRESS = re.compile(r"http://127\.0\.0\.1:[0-9]+")
SERVED = text("SELECT DISTINCT unnest(capabilities) FROM workers WHERE status = 'online'")
BUSY = text(
    """
    SELECT task_id::text || ' is ' || state AS what FROM task_status
        WHERE state IN ('pending', 'queued', 'running')
            OR state IN ('scheduled', 'waiting') AND LEAST(due_at, deadline) <= now()
    UNION ALL SELECT 'schedule ' || name || ' is due' FROM schedules WHERE enabled AND next_at <= now()
    UNION ALL SELECT 'bulk act ' || id::text || ' is running' FROM bulk_acts WHERE state = 'running'
    """
)


class LiveSystem:
    """The processes.

    A task that a pause or a limit holds back counts as not idle: only the orchestrator knows that it cannot run.
    """

    kept: tuple[str, ...] = ("workers",)

    def __init__(self, variables: Mapping[str, str], engine: Engine, logs: Path) -> None:
        self.variables = dict(variables)
        self.engine = engine
        self.logs = logs
        self.children: list[tuple[Child, signal.Signals]] = []

    def start(self) -> str:
        """Start the orchestrator; return the address of its API."""
        child = self._start("orchestrator", ["orchestrator"], signal.SIGTERM, withheld=OF_FLOWER + OF_MINIONS)
        line = self._wait(lambda: LISTENING.search(child.last_words(1000)), "the orchestrator")
        (address,) = ADDRESS.findall(line.group())
        return str(address)

    def serve(self, capabilities: Collection[str]) -> None:
        """Start a worker for the capabilities that none serves; it runs until the session ends."""
        missing = sorted(set(capabilities) - self._served())
        if not missing:
            return
        # An orphaned worker must not wait for its tasks.
        arguments = ["worker", ",".join(missing), "-c", str(SLOTS)]
        self._start(f"worker-{len(self.children)}", arguments, signal.SIGQUIT, withheld=OF_API + OF_FLOWER)
        self._wait(lambda: self._served() >= set(capabilities), "the worker")

    def run_until_idle(self, timeout: float) -> None:
        """Wait until no task can continue.

        Raises:
            AssertionError: something runs or waits for its turn after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while busy := self._busy():
            if time.monotonic() > deadline:
                listed = "".join(f"\n  {each}" for each in busy[:20])
                raise AssertionError(f"Not idle after {timeout:g} s:{listed}\nThe logs are in {self.logs}.")
            time.sleep(LOOK_SECONDS)

    def stop(self) -> None:
        """End the processes."""
        for number, seconds in ((None, STOP_SECONDS), (signal.SIGKILL, 5.0)):
            for child, gently in self.children:
                child.signal(number or gently)
            deadline = time.monotonic() + seconds
            ended = [child.wait(deadline - time.monotonic()) for child, _ in self.children]
            if all(ended):
                break

    def _start(self, name: str, arguments: list[str], orphaned: signal.Signals, *, withheld: tuple[str, ...]) -> Child:
        child = Child(name, arguments, self.variables, self.logs, orphaned=orphaned, withheld=withheld)
        child.start()
        self.children.append((child, orphaned))
        return child

    def _served(self) -> set[str]:
        with self.engine.connect() as connection:
            return set(connection.scalars(SERVED))

    def _busy(self) -> list[str]:
        with self.engine.connect() as connection:
            return list(connection.scalars(BUSY))

    def _wait(self, condition: Callable[[], Found | None], what: str) -> Found:
        """Return what the condition finds."""
        deadline = time.monotonic() + START_SECONDS
        while not (found := condition()):
            for child, _ in self.children:
                if not child.running:
                    raise RuntimeError(f"{child.name} ended. The end of its log:\n{child.last_words()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what} did not start within {START_SECONDS:.0f} s; the logs are in {self.logs}.")
            time.sleep(LOOK_SECONDS)
        return found


@contextmanager
def live(servers: Servers) -> Iterator[Installation]:
    """Run the installation whose tasks run in processes."""
    variables = servers.variables("live", 1)
    logs = servers.folder / "live" / "logs"
    logs.mkdir(parents=True)
    engine = create_engine(variables["DATABASE_URL"])
    system = LiveSystem(variables, engine, logs)
    try:
        yield Installation(servers, engine, system.start(), variables, system)
    finally:
        system.stop()
        engine.dispose()
