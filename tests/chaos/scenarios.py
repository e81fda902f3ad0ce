"""The table of scenarios, and how one is played: load, faults during the load, more load, and the questions.

The tasks are submitted in shares, one more than there are strikes. A strike falls at a random moment while a share is
being submitted and executed; the last share shows whether the system works as before.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection

from orchestrator.local.embedded import scratch_dir
from tests.chaos import audit, faults
from tests.chaos.audit import Findings
from tests.chaos.celery_side import Comparison, PlainCelery
from tests.chaos.clock import NEEDED, Clocked, find_library
from tests.chaos.faults import Fault
from tests.chaos.injected import COPIES
from tests.chaos.system import Minions, System, Timing, with_sub_tasks
from tests.support.processes import wait_until

BATCH = 25
STALLED_SECONDS = 1.0
DISK_MEGABYTES = 400
# Longer than any visibility timeout, so that a wrong clock makes the Redis of plain Celery repeat messages as well.
WRONG_CLOCKS = (0.0, 110_000.0, -110_000.0)


@dataclass(frozen=True)
class Scenario:
    """One row of the table.

    Attributes:
        strike: the fault; None if `copies` is the only one.
        strikes: how often it strikes.
        copies: every message is delivered three times, the third time late.
        wrong_clocks: every process has another clock.
        moving_clock: PostgreSQL has a movable clock, and there are waits, deadlines and a schedule.
        small_disk: both servers store their data on a separate small file system.
        comparable: plain Celery has the component that is struck.
    """

    name: str
    strike: Fault | None
    strikes: int = 1
    workers: int = 2
    orchestrators: int = 1
    copies: bool = False
    wrong_clocks: bool = False
    moving_clock: bool = False
    small_disk: bool = False
    comparable: bool = True

    @property
    def what(self) -> str:
        """Return a one-line description of the fault."""
        return ((self.strike and self.strike.__doc__) or "Every message is delivered three times.").splitlines()[0]


SCENARIOS = (
    Scenario("kill-child", faults.kill_child, strikes=4),
    Scenario("kill-main-process", faults.kill_main_process, strikes=2),
    Scenario("kill-worker", faults.kill_worker, strikes=3),
    Scenario("kill-orchestrator", faults.kill_orchestrator, strikes=3, comparable=False),
    Scenario("two-orchestrators", faults.kill_orchestrator, strikes=4, orchestrators=2, comparable=False),
    Scenario("kill-everything", faults.kill_everything, strikes=2),
    Scenario("redis-restart", faults.restart_redis, strikes=2),
    Scenario("redis-restart-empty", faults.restart_redis_empty, strikes=2),
    Scenario("redis-flushall", faults.flush_redis, strikes=4),
    Scenario("redis-refuses-writes", faults.refuse_writes),
    Scenario("messages-three-times", None, copies=True),
    Scenario("postgres-restart", faults.restart_postgres, strikes=2),
    Scenario("postgres-connections", faults.cut_connections, strikes=3),
    Scenario("postgres-clock", faults.move_clock, strikes=4, moving_clock=True, comparable=False),
    Scenario("freeze-child", faults.freeze_child),
    Scenario("freeze-main-process", faults.freeze_main_process),
    Scenario("freeze-worker", faults.freeze_worker),
    Scenario("freeze-orchestrator", faults.freeze_orchestrator, comparable=False),
    Scenario("freeze-redis", faults.freeze_redis),
    Scenario("freeze-postgres", faults.freeze_postgres),
    Scenario("wrong-clocks", faults.kill_worker, strikes=2, wrong_clocks=True),
    Scenario("rolling-restart", faults.rolling_restart),
    Scenario("disk-full", faults.fill_disk, small_disk=True),
)
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


@dataclass
class Result:
    """The outcome of a scenario.

    Attributes:
        tasks: submitted tasks that were accepted as the submitter saw it, and their sub-tasks.
        recovery: as in `audit.recovery`, the longest of all strikes. None: no strike.
        pause: the longest time in which no task ended. None: unknown, because the database's clock was moved.
        refused: messages that a worker received and discarded: their task was already claimed, or had ended.
        celery: the outcome on plain Celery; None: not played.
        unexpected: processes that ended although the test did not end them.
        skipped: why the scenario was not played.
    """

    name: str
    tasks: int
    findings: Findings | None = None
    recovery: float | None = None
    pause: float | None = 0.0
    refused: int = 0
    celery: Comparison | None = None
    unexpected: list[str] = field(default_factory=list)
    skipped: str = ""

    def broken(self) -> list[str]:
        """Return the broken promises."""
        if self.findings is None:
            return [] if self.skipped else ["not examined"]
        return self.findings.broken(self.tasks) + self.unexpected


class Skipped(Exception):
    """The machine does not permit the scenario; the text gives the reason."""


class Load(threading.Thread):
    """Thread that submits tasks in batches, as fast as they are executed, and retries a refused batch."""

    def __init__(self, system: System, share: int) -> None:
        super().__init__(name="load", daemon=True)
        self.system = system
        self.share = share
        self.accepted = 0
        self.granted = 0
        self._finished = 0
        self._since = time.monotonic()
        self._stopping = threading.Event()

    def grant(self, tasks: int) -> None:
        """Permit the submission of more tasks."""
        self.granted += tasks

    def run(self) -> None:
        while not self._stopping.wait(0.02):
            batch = range(self.accepted, min(self.accepted + BATCH, self.granted))
            if batch and self._is_due():
                # The caller of a queue retries after any error.
                with suppress(Exception):
                    self.system.submit(batch)
                    self.accepted += len(batch)

    def _is_due(self) -> bool:
        """Return whether less than half a share is unfinished, or no task ended for a second: the rest may be lost."""
        if (finished := self.system.finished()) is None:
            return True
        if finished != self._finished:
            self._finished, self._since = finished, time.monotonic()
        return self.accepted - finished < self.share / 2 or time.monotonic() - self._since > STALLED_SECONDS

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self.join()


def play(
    scenario: Scenario,
    tasks: int,
    seed: int,
    lease: float,
    *,
    celery: bool = False,
    logs: Path | None = None,
    forked: bool = False,
) -> Result:
    """Play a scenario on fresh servers.

    Args:
        tasks: number of submitted tasks.
        seed: of all random choices.
        lease: seconds.
        celery: also play it on plain Celery, if that is comparable.
        logs: a folder for the output of the processes.
        forked: start processes as forks where their clock permits it.
    """
    timing, seeded = Timing.of_lease(lease), f"{seed} {scenario.name}"
    result = Result(scenario.name, with_sub_tasks(tasks))
    try:
        with folder_for(scenario, logs) as folder, _system(scenario, folder, timing, seeded) as minions:
            minions.forked = forked
            _examine(minions, scenario, tasks, result)
        if celery and scenario.comparable:
            with folder_for(scenario, logs) as folder:
                plain = PlainCelery(folder, timing, seeded, copies=scenario.copies)
                with plain:
                    attack(plain, scenario, tasks)
                    result.celery = plain.examine(tasks)
    except Skipped as reason:
        result.skipped = str(reason)
    return result


def _system(scenario: Scenario, folder: Path, timing: Timing, seed: str) -> Minions:
    if not scenario.moving_clock:
        return Minions(folder, timing, seed, copies=scenario.copies)
    library = find_library()
    if library is None:
        raise Skipped(NEEDED)
    return Clocked(folder, timing, seed, library)


def _examine(system: Minions, scenario: Scenario, tasks: int, result: Result) -> None:
    strikes: list[Strike] = []
    try:
        strikes = attack(system, scenario, tasks)
    except AssertionError as error:
        result.unexpected.append(f"waited in vain: {error}")
    if isinstance(system, Clocked):
        result.tasks += system.ticks()
    with system.engine.connect() as connection:
        result.findings = audit.examine(connection)
        result.recovery = max((strike.recovery(connection) for strike in strikes), default=None)
        result.pause = None if scenario.moving_clock else audit.longest_pause(connection)
    result.refused = system.refused_messages()
    result.unexpected += system.unexpected


@dataclass(frozen=True)
class Strike:
    """A fault that is over.

    Attributes:
        ended: when it was over, in seconds since 1970.
        in_flight: the tasks that were in flight when it began.
        measured: the recovery, if the database's clock cannot measure it.
    """

    ended: float
    in_flight: list[str]
    measured: float | None = None

    def recovery(self, connection: Connection) -> float:
        """Return the seconds until the system had recovered."""
        if self.measured is not None:
            return self.measured
        return audit.recovery(connection, self.in_flight, self.ended)


def attack(system: System, scenario: Scenario, tasks: int) -> list[Strike]:
    """Start the processes, put them under load, strike, and wait for the end of all tasks."""
    if scenario.wrong_clocks:
        system.clock_shifts = WRONG_CLOCKS
    for _ in range(scenario.workers):
        system.start_worker()
    for _ in range(scenario.orchestrators):
        system.start_orchestrator()
    strikes, share = [], tasks // (scenario.strikes + 1)
    load = Load(system, share)
    with ExitStack() as stack:
        stack.callback(load.stop)
        if scenario.copies:
            stack.enter_context(delivering_copies(system))
        load.start()
        for _ in range(scenario.strikes if scenario.strike else 0):
            # Each strike meets a complete system; otherwise it would measure the start of processes.
            system.wait_all_ready()
            load.grant(share)
            system.wait_finished((system.finished() or 0) + int(share * system.random.uniform(0.1, 0.5)))
            in_flight = system.in_flight()
            assert scenario.strike is not None
            scenario.strike(system)
            ended = time.time()
            measured = system.recover(in_flight) if isinstance(system, Clocked) else None
            strikes.append(Strike(ended, in_flight, measured))
        system.wait_all_ready()
        load.grant(tasks - load.granted)
        wait_until(lambda: load.accepted == tasks, "all tasks submitted", 300)
        system.wait_finished(tasks)
        if isinstance(system, Clocked):
            system.rest()
        # Messages that are still in the queue could do harm.
        with suppress(AssertionError):
            wait_until(system.drained, "no messages left", system.patience)
    return strikes


@contextmanager
def delivering_copies(system: System) -> Iterator[None]:
    """Deliver the third copy of every message to its queue, at random moments."""
    stopping = threading.Event()
    chance = random.Random(system.random.random())  # a separate one for the thread: the order of draws is fixed

    def deliver() -> None:
        with system.broker() as broker:
            while not stopping.wait(0.01) or broker.llen(COPIES):
                if stopping.is_set() or chance.random() < 0.1:
                    for _ in range(BATCH):
                        broker.lmove(COPIES, system.queue, "RIGHT", "LEFT")

    thread = threading.Thread(target=deliver, name="copies", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


@contextmanager
def folder_for(scenario: Scenario, logs: Path | None) -> Iterator[Path]:
    """Return a folder for one run; if the scenario needs it, with a small file system for the servers in it."""
    with (
        scratch_dir() as folder,
        _small_disk(folder / "servers") if scenario.small_disk else nullcontext(),
        keep_logs(scenario.name, folder, logs),
    ):
        yield folder


@contextmanager
def keep_logs(name: str, folder: Path, logs: Path | None) -> Iterator[None]:
    """Copy the output of the processes at the end, if there is a folder for it."""
    try:
        yield
    finally:
        if logs:
            for log in folder.glob("*.log"):
                shutil.copy(log, logs / f"{name}-{log.name}")


@contextmanager
def _small_disk(link: Path) -> Iterator[None]:
    """Mount a small file system and make `link` point there.

    It is in the temporary directory, where a mount that is left after a kill is out of the way.
    """
    mounted = Path(tempfile.mkdtemp(prefix="minions-chaos-"))
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m,mode=0711", "minions-chaos", str(mounted)]
    with ExitStack() as stack:
        stack.callback(mounted.rmdir)
        try:
            subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            why = getattr(error, "stderr", "") or str(error)
            raise Skipped(f"no small file system can be mounted here: {why.strip()}") from None
        stack.callback(subprocess.run, ["umount", str(mounted)], check=True)
        link.symlink_to(mounted)
        yield
