"""The table of scenarios, and how one is played: load, faults in the middle of it, more load, and the questions.

The tasks come in shares, one more than there are strikes. A strike falls at a random moment while a share is being
submitted and worked on; the last share shows whether the system works as before.
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
        strike: the fault; None where `copies` is all there is.
        strikes: how often it strikes.
        copies: every message is delivered three times, the third time late.
        wrong_clocks: every process has another clock.
        moving_clock: PostgreSQL has a clock that can be moved, and there are waits, deadlines and a schedule.
        small_disk: both servers' data lie on a small file system of their own.
        comparable: plain Celery has what is struck.
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
        """What happens, in a line."""
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
    """What a scenario showed.

    Attributes:
        tasks: those that were handed in, and accepted as the submitter saw it, and their sub-tasks.
        recovery: as in `audit.recovery`, the longest of all strikes. None: no strike.
        pause: the longest time in which no task ended. None: not known, for the clock that tells it was moved.
        refused: messages that a worker took from the broker and put away: their task was claimed already, or had ended.
        celery: what plain Celery made of it; None: not tried.
        unexpected: processes that ended although nobody ended them.
        skipped: why the scenario did not take place.
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
        """The promises that do not hold."""
        if self.findings is None:
            return [] if self.skipped else ["not examined"]
        return self.findings.broken(self.tasks) + self.unexpected


class Skipped(Exception):
    """The machine does not permit the scenario; the text says why."""


class Load(threading.Thread):
    """Hands in tasks, in batches, as fast as they are worked off; a batch that is refused again and again."""

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
        """Lets it hand in more."""
        self.granted += tasks

    def run(self) -> None:
        while not self._stopping.wait(0.02):
            batch = range(self.accepted, min(self.accepted + BATCH, self.granted))
            if batch and self._is_due():
                # Whatever is wrong, the caller of a queue tries again.
                with suppress(Exception):
                    self.system.submit(batch)
                    self.accepted += len(batch)

    def _is_due(self) -> bool:
        """Not while half a share waits, but for every second in which nothing ended: the rest may be lost."""
        if (finished := self.system.finished()) is None:
            return True
        if finished != self._finished:
            self._finished, self._since = finished, time.monotonic()
        return self.accepted - finished < self.share / 2 or time.monotonic() - self._since > STALLED_SECONDS

    def stop(self) -> None:
        """Ends the thread."""
        self._stopping.set()
        self.join()


def play(
    scenario: Scenario, tasks: int, seed: int, lease: float, *, celery: bool = False, logs: Path | None = None
) -> Result:
    """Plays a scenario on fresh servers.

    Args:
        tasks: how many are handed in.
        seed: of whatever is left to chance.
        lease: seconds.
        celery: also on plain Celery, where it has what is struck.
        logs: a folder for what the processes wrote.
    """
    timing, seeded = Timing.of_lease(lease), f"{seed} {scenario.name}"
    result = Result(scenario.name, with_sub_tasks(tasks))
    try:
        with folder_for(scenario, logs) as folder, _system(scenario, folder, timing, seeded) as minions:
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
        measured: the recovery, where the database's clock does not tell it.
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
    """Starts the processes, puts them under load, strikes, and waits for the end of all tasks."""
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
            # Each strike meets a whole system, or its figure would be about the start of processes.
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
        wait_until(lambda: load.accepted == tasks, "all tasks handed in", 300)
        system.wait_finished(tasks)
        if isinstance(system, Clocked):
            system.rest()
        # What is still on its way could do harm yet.
        with suppress(AssertionError):
            wait_until(system.drained, "no messages left", system.patience)
    return strikes


@contextmanager
def delivering_copies(system: System) -> Iterator[None]:
    """Brings the third copy of every message to its queue, at random moments."""
    stopping = threading.Event()
    chance = random.Random(system.random.random())  # a thread's own, or the order of draws would be anybody's

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
    """A folder for one run; where the scenario wants it, with a small file system for the servers in it."""
    with (
        scratch_dir() as folder,
        _small_disk(folder / "servers") if scenario.small_disk else nullcontext(),
        keep_logs(scenario.name, folder, logs),
    ):
        yield folder


@contextmanager
def keep_logs(name: str, folder: Path, logs: Path | None) -> Iterator[None]:
    """Copies what the processes wrote, at the end, if there is a folder for it."""
    try:
        yield
    finally:
        if logs:
            for log in folder.glob("*.log"):
                shutil.copy(log, logs / f"{name}-{log.name}")


@contextmanager
def _small_disk(link: Path) -> Iterator[None]:
    """Mounts a small file system and makes `link` point there.

    It lies in the temporary directory: should we be killed, nobody stumbles over the mount that is left.
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
