"""The systems under attack: private servers, workers and orchestrators as real processes.

Faults act on a `System`: `Minions` is this project, `tests.chaos.celery_side.PlainCelery` the other one.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import redis
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from orchestrator.local.embedded import EmbeddedServers
from shared.contracts.documents import parse_definition
from shared.contracts.requests import TaskRequest
from shared.database.connections import autocommit, make_engine
from shared.database.schema import migrate
from shared.definitions.apply import store_definitions
from shared.settings import Settings
from shared.tasks.submission import submit_within
from tests.chaos import audit
from tests.chaos.injected import COPIES
from tests.chaos.network import Link
from tests.support.processes import Process, online, ready, wait_until

QUEUE = "chaos"
SLOTS = 4
# The tasks do not cause the faults: none may run out of attempts, or of workers that it may lose.
ATTEMPTS = 100
# One in this many tasks is a chain of two sub-tasks: it is suspended, and its children wake it.
CHAIN_EVERY = 10
CONFIG = {"capabilities": [QUEUE], "max_attempts": ATTEMPTS}
DEFINITIONS = (
    {"kind": "tool", "name": "commit", "type": "builtin", "builtin": "chaos-commit", "effect": "idempotent"},
    {"kind": "agent", "name": "chaos", "type": "function", "tool": "commit", "config": CONFIG},
    {
        "kind": "agent",
        "name": "chaos-chain",
        "type": "function",
        "description": "Two sub-tasks at once",
        "relations": [{"agent": "chaos"}, {"agent": "chaos"}],
        "config": {**CONFIG, "chain_strategy": "parallel"},
    },
)
FINISHED = text(
    "SELECT count(*) FROM task_outcomes o JOIN tasks t ON t.id = o.task_id "
    "WHERE t.parent_id IS NULL AND t.submitted_by = 'chaos'"
)
REFUSED = '"event": "skipped"'
BUSY = text("SELECT EXISTS (SELECT 1 FROM workers WHERE status = 'online' AND busy > 0)")


@dataclass(frozen=True)
class Timing:
    """Delays until failures are noticed, in seconds; the product's defaults are 10, 3 and 5."""

    lease: float
    heartbeat: float
    lost_message: float

    @classmethod
    def of_lease(cls, lease: float) -> Timing:
        """Return the proportions of the defaults, except for a heartbeat that survives a busy machine."""
        return cls(lease, lease / 5, lease / 2)


class System(ABC):
    """Servers, workers and, if the system has them, orchestrators. Everything ends with the block.

    Attributes:
        random: for the faults: victim, time and duration.
        queue: the Redis list of messages.
        clock_shifts: seconds by which the clocks of processes are ahead; each new process takes the next one.
        patience: seconds without progress after which unfinished tasks count as stuck.
        unexpected: processes that ended although the test did not end them.
        forked: start processes as forks where their clock permits it. New interpreters take longer, as users know them.
        links: connections between the processes and the servers, if they are not Unix sockets.
    """

    queue: ClassVar[str]

    def __init__(self, folder: Path, timing: Timing, seed: str) -> None:
        self.folder = folder
        self.timing = timing
        self.random = random.Random(seed)
        self.clock_shifts: tuple[float, ...] = (0.0,)
        self.patience = max(30.0, 10 * timing.lease)
        self.servers = EmbeddedServers(folder / "servers")
        self.workers: list[Process] = []
        self.orchestrators: list[Process] = []
        self.unexpected: list[str] = []
        self.forked = False
        self.links: list[Link] = []
        self.engine: Engine
        self._processes: list[Process] = []
        # Children die with the thread that started them; this one lasts.
        self._launcher = ThreadPoolExecutor(1)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            addresses = self._stack.enter_context(self.servers).start()
            self.redis_url = addresses.redis_url
            self.settings = Settings(
                DATABASE_URL=addresses.database_url,
                REDIS_URL=addresses.redis_url,
                lease_seconds=self.timing.lease,
                heartbeat_seconds=self.timing.heartbeat,
            )
            self.engine = make_engine(self.settings)
            self._stack.callback(self.engine.dispose)
            self._stack.callback(self._end)  # before its connections and servers go away
            self.prepare()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @abstractmethod
    def prepare(self) -> None:
        """Create the tables, on fresh servers."""

    @abstractmethod
    def start_worker(self) -> Process:
        """Start one more worker without waiting for it."""

    @abstractmethod
    def start_orchestrator(self) -> Process | None:
        """Start one more orchestrator, if the system has them, without waiting for it."""

    @abstractmethod
    def is_ready(self, process: Process) -> bool:
        """Return whether a running process is at work."""

    @abstractmethod
    def submit(self, numbers: Iterable[int]) -> None:
        """Submit tasks; a retry after an error is harmless if the system permits it.

        Raises:
            Exception: not all tasks were accepted; submit them again.
        """

    @abstractmethod
    def count_finished(self) -> int:
        """Return the number of submitted tasks that have ended."""

    def finished(self) -> int | None:
        """Return the number of submitted tasks that have ended; None while it cannot be read."""
        try:
            return self.count_finished()
        except DBAPIError:
            return None

    def in_flight(self) -> list[str]:
        """Return the tasks that are queued or running, if the system can report them."""
        return []

    def broker(self) -> redis.Redis:
        """Return a client of the broker."""
        return redis.Redis.from_url(self.redis_url, socket_timeout=5)

    def drained(self) -> bool:
        """Return whether no message is left, and no worker is at work."""
        with self.broker() as broker:
            return not broker.exists(self.queue, COPIES)

    def wait_ready(self, process: Process) -> None:
        """Wait until a process is at work."""
        wait_until(lambda: process.running and self.is_ready(process), f"{process.log.name} at work", 60)

    def wait_all_ready(self) -> None:
        """Wait until all are at work; processes that end in the meantime are restarted."""

        def all_ready() -> bool:
            self.supervise()
            return all(process.running and self.is_ready(process) for process in (*self.workers, *self.orchestrators))

        wait_until(all_ready, "all processes at work", 60)

    def wait_finished(self, goal: int) -> None:
        """Supervise until this many tasks have ended, or none has for as long as patience permits."""
        last, since = self.finished(), time.monotonic()
        while last is None or last < goal:
            if time.monotonic() - since > self.patience:
                return
            time.sleep(0.05)
            self.supervise()
            if (now := self.finished()) != last:
                last, since = now, time.monotonic()

    def supervise(self) -> None:
        """Restart processes that ended unexpectedly, as an init system would, and record them."""
        for group, start in ((self.workers, self.start_worker), (self.orchestrators, self.start_orchestrator)):
            for process in [one for one in group if not one.running]:
                group.remove(process)
                self.unexpected.append(f"{process.log.name} ended by itself with {process.popen.returncode}")
                start()

    def launch(self, role: str, arguments: list[str], env: dict[str, str]) -> Process:
        """Start a Python process of this system, with the next clock."""
        number = len(self._processes)
        shift = self.clock_shifts[number % len(self.clock_shifts)]
        process = self._launcher.submit(
            Process,
            [sys.executable, *arguments],
            self.folder / f"{role}-{number + 1}.log",
            env | {"CHAOS_CLOCK_SHIFT": str(shift), "PYTHONPATH": str(self.folder)},
            # A clock must be shifted before the imports.
            forked=self.forked and not shift,
        ).result()
        self._processes.append(process)
        return process

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
        self._launcher.shutdown()


class Minions(System):
    """This project, as it is installed and started."""

    queue = QUEUE
    definitions: ClassVar[Sequence[dict[str, Any]]] = DEFINITIONS

    def __init__(self, folder: Path, timing: Timing, seed: str, *, copies: bool = False) -> None:
        super().__init__(folder, timing, seed)
        self.env = {
            "MINION_API_KEY": "chaos-chaos-chaos",
            "MINION_API_PORT": "0",
            "MINION_DATA_DIR": str(folder / "data"),
            "MINION_LOG_FORMAT": "json",
            "MINION_LEASE_SECONDS": str(timing.lease),
            "MINION_HEARTBEAT_SECONDS": str(timing.heartbeat),
            "MINION_LOST_MESSAGE_SECONDS": str(timing.lost_message),
            # A supervisor starts them while the servers are still unavailable.
            "MINION_CONNECT_ATTEMPTS": "100",
            "CHAOS_COPIES": QUEUE if copies else "",
        }

    def prepare(self) -> None:
        self.env |= {
            "DATABASE_URL": self.settings.require_database_url(),
            "REDIS_URL": self.settings.require_redis_url(),
        }
        offer_tool(self.folder)
        migrate(self.engine)
        with self.engine.begin() as connection:
            audit.install(connection)
        with Session(self.engine) as session:
            store_definitions(session, [parse_definition(definition) for definition in self.definitions])

    def start_worker(self) -> Process:
        name = f"chaos{len(self._processes)}@%h"
        arguments = ["worker", "-A", "workers.app", "-Q", QUEUE, "-c", str(SLOTS), "-n", name, "--without-mingle"]
        process = self.launch("worker", ["-m", "tests.chaos.injected", *arguments], self.env)
        self.workers.append(process)
        return process

    def start_orchestrator(self) -> Process:
        process = self.launch("orchestrator", ["-m", "tests.chaos.injected", "orchestrator"], self.env)
        self.orchestrators.append(process)
        return process

    def is_ready(self, process: Process) -> bool:
        return ready(process) if process in self.orchestrators else online(process, self.engine)

    def submit(self, numbers: Iterable[int]) -> None:
        requests = [TaskRequest(idempotency_key=f"chaos-{number}", **self.request(number)) for number in numbers]
        with self.engine.begin() as connection:
            submit_within(connection, requests, submitted_by="chaos")

    def request(self, number: int) -> dict[str, Any]:
        """Return the fields of a task without the key."""
        return {"agent": agent(number), "input": {"seconds": seconds(number)}}

    def count_finished(self) -> int:
        with self._reading() as connection:
            return int(connection.scalar(FINISHED) or 0)

    def in_flight(self) -> list[str]:
        with self._reading() as connection:
            return audit.in_flight(connection)

    def refused_messages(self) -> int:
        """Return the number of messages that found nothing to claim."""
        logs = [process.output() for process in self._processes if process.log.name.startswith("worker")]
        return sum(log.count(REFUSED) for log in logs)

    def drained(self) -> bool:
        with self._reading() as connection:
            return super().drained() and not connection.scalar(BUSY)

    def _reading(self) -> Connection:
        """Return a connection without a transaction, which a jump of the server's clock would end."""
        return autocommit(self.engine).connect()


def seconds(number: int) -> float:
    """Return how long a task works: 0 to 80 ms, the same in every run. Long enough to keep every slot busy."""
    return random.Random(number).uniform(0, 0.08)


def agent(number: int) -> str:
    """Return the agent of a task."""
    return "chaos-chain" if number % CHAIN_EVERY == 0 else "chaos"


def with_sub_tasks(tasks: int) -> int:
    """Return the final number of tasks for this many submissions."""
    return tasks + sum(2 for number in range(tasks) if agent(number) == "chaos-chain")


def offer_tool(folder: Path) -> None:
    """Make the folder, which is on PYTHONPATH, an installed package that offers the test tool."""
    about = folder / "minion_chaos_tools-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: minion-chaos-tools\nVersion: 1.0\nLicense-Expression: MIT\n"
    )
    (about / "entry_points.txt").write_text("[minions.tools]\nchaos-commit = tests.chaos.effects:commit\n")


def descendants(pid: int) -> list[int]:
    """Return a process's children, their children, and so on."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listing.splitlines())}
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]
