"""The faults, one function each. They strike a running system and return when the fault is over.

Killed processes are started again, as an init system would do; whether that helps is up to the system.
"""

from __future__ import annotations

import copy
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from orchestrator.local.embedded.server import Server
from tests.chaos.clock import Clocked
from tests.chaos.network import may_filter
from tests.chaos.system import System, descendants
from tests.support.processes import Process

Fault = Callable[[System], None]

END_SESSIONS = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE pid <> pg_backend_pid() AND datname = current_database()"
)


# ---------------------------------------------------------------------------------------------- kill -9


def kill_child(system: System) -> None:
    """A process of a worker's pool dies: out of memory, or a crash in native code."""
    worker = system.random.choice(system.workers)
    with suppress(ProcessLookupError):
        os.kill(system.random.choice(descendants(worker.pid)), signal.SIGKILL)


def kill_main_process(system: System) -> None:
    """A worker's main process dies, and the children of its pool are not notified."""
    worker = _take(system, system.workers)
    worker.signal(signal.SIGKILL)
    worker.wait()
    system.start_worker()


def kill_worker(system: System) -> None:
    """A worker dies with all its children, as with its machine."""
    _take(system, system.workers).kill()
    system.start_worker()


def kill_orchestrator(system: System) -> None:
    """An orchestrator dies; where there are two, the other one continues immediately."""
    _take(system, system.orchestrators).kill()
    system.start_orchestrator()


def kill_everything(system: System) -> None:
    """All processes and both servers die at the same moment: a power cut that loses no writes of the kernel."""
    processes = [*system.workers, *system.orchestrators]
    counts = len(system.workers), len(system.orchestrators)
    for process in processes:
        process.kill()
    system.servers.valkey.kill()
    system.servers.postgres.kill()
    system.workers.clear()
    system.orchestrators.clear()
    system.servers.start()
    for _ in range(counts[0]):
        system.start_worker()
    for _ in range(counts[1]):
        system.start_orchestrator()


# ---------------------------------------------------------------------------------------------- the broker


def restart_redis(system: System) -> None:
    """The broker is killed and restarts with the data that it had written to disk: all but the last second."""
    _restart(system, system.servers.valkey)


def restart_redis_empty(system: System) -> None:
    """The broker is killed and restarts without any keys."""
    valkey = system.servers.valkey
    _restart(system, valkey, meanwhile=lambda: shutil.rmtree(valkey.folder / "appendonlydir"))


def flush_redis(system: System) -> None:
    """An operator runs FLUSHALL."""
    with system.broker() as broker:
        broker.flushall()


def refuse_writes(system: System) -> None:
    """The broker refuses every write for twice the lease, like a broker that has lost its replicas."""
    with system.broker() as broker:
        broker.config_set("min-replicas-to-write", 1)
        time.sleep(2 * system.timing.lease)
        broker.config_set("min-replicas-to-write", 0)


# ---------------------------------------------------------------------------------------------- the database


def restart_postgres(system: System) -> None:
    """The database is killed and restarts."""
    _restart(system, system.servers.postgres)


def cut_connections(system: System) -> None:
    """The server ends every connection to the database, several times within a lease."""
    for _ in range(5):
        with suppress(DBAPIError), system.engine.connect() as connection:
            connection.execute(END_SESSIONS)
        time.sleep(system.timing.lease / 5 * system.random.random())


def move_clock(system: System) -> None:
    """The clock of the database's host jumps back or ahead by an hour, and a worker dies at that moment."""
    assert isinstance(system, Clocked), "its clock can be moved"
    system.clock.move()
    kill_worker(system)


# ---------------------------------------------------------------------------------------------- frozen


def freeze_child(system: System) -> None:
    """One process of a pool is frozen for twice the lease."""
    _freeze(system, [system.random.choice(descendants(system.random.choice(system.workers).pid))])


def freeze_main_process(system: System) -> None:
    """A worker's main process is frozen and sends no heartbeats; its children continue."""
    _freeze(system, [system.random.choice(system.workers).pid])


def freeze_worker(system: System) -> None:
    """A whole worker is frozen, like a suspended virtual machine."""
    worker = system.random.choice(system.workers).pid
    _freeze(system, [worker, *descendants(worker)])


def freeze_orchestrator(system: System) -> None:
    """The orchestrator is frozen."""
    _freeze(system, [system.random.choice(system.orchestrators).pid])


def freeze_redis(system: System) -> None:
    """The broker is frozen; connections stay open without any answer."""
    _freeze(system, [_pid(system.servers.valkey)])


def freeze_postgres(system: System) -> None:
    """The database is frozen with all its processes."""
    main = _pid(system.servers.postgres)
    _freeze(system, [main, *descendants(main)])


# ---------------------------------------------------------------------------------------------- the network


def lose_packets(system: System) -> None:
    """Packets between the processes and one server, or both, are lost for twice the lease, in one direction or both."""
    links = system.random.choice([[link] for link in system.links] + [system.links])
    directions = ((True, True), (True, False), (False, True)) if may_filter() else ((False, True),)
    to_server, to_client = system.random.choice(directions)
    for link in links:
        link.lose(to_server=to_server, to_client=to_client)
    time.sleep(2 * system.timing.lease)
    for link in links:
        link.restore()


# ---------------------------------------------------------------------------------------------- by an operator


def rolling_restart(system: System) -> None:
    """Every process is replaced by a new one, one after the other, and asked to stop with SIGTERM."""
    for group, start in (
        (system.workers, system.start_worker),
        (system.orchestrators, system.start_orchestrator),
    ):
        for old in tuple(group):
            new = start()
            assert new is not None
            system.wait_ready(new)
            group.remove(old)
            old.stop(60)


def fill_disk(system: System) -> None:
    """The file system of both servers is full for twice the lease; processes that gave up by then are restarted."""
    ballast = system.servers.data_dir / "ballast"
    block = bytes(1 << 20)
    began = time.monotonic()
    with ballast.open("wb", buffering=0) as file:
        # The servers free and use space all the time: the freed space is filled too.
        while time.monotonic() - began < 2 * system.timing.lease:
            with suppress(OSError):
                file.write(block)
                continue
            time.sleep(0.01)
    ballast.unlink()
    system.servers.start()


# ---------------------------------------------------------------------------------------------- several together

# Faults of one target exclude each other; faults of different targets may overlap.
TARGETS: dict[str, Sequence[Fault]] = {
    "worker": (kill_child, kill_main_process, kill_worker, freeze_child, freeze_main_process, freeze_worker),
    "orchestrator": (kill_orchestrator, freeze_orchestrator),
    "broker": (restart_redis, restart_redis_empty, flush_redis, refuse_writes, freeze_redis),
    "database": (restart_postgres, cut_connections, freeze_postgres),
    "network": (lose_packets,),
}


def choose_overlapping(chance: random.Random) -> list[Fault]:
    """Choose two or three faults of different targets."""
    targets = chance.sample(sorted(TARGETS), chance.choice((2, 3)))
    return [chance.choice(TARGETS[target]) for target in targets]


def strike_together(system: System, chosen: Sequence[Fault]) -> None:
    """Run faults at the same time, each after a pause of up to half a lease; return when all are over.

    Each fault draws from its own random numbers, so that a seed repeats its choices.
    """

    def strike(fault: Fault, pause: float, view: System) -> None:
        time.sleep(pause)
        fault(view)

    with ThreadPoolExecutor(len(chosen)) as threads:
        strikes = []
        for fault in chosen:
            view = copy.copy(system)
            view.random = random.Random(system.random.random())
            strikes.append(threads.submit(strike, fault, system.timing.lease / 2 * view.random.random(), view))
    for struck in strikes:
        struck.result()


# ---------------------------------------------------------------------------------------------- helpers


def _take(system: System, group: list[Process]) -> Process:
    """Return a victim whose end is from now on not reported as unexpected."""
    victim = system.random.choice(group)
    group.remove(victim)
    return victim


def _restart(system: System, server: Server, meanwhile: Callable[[], None] = lambda: None) -> None:
    server.kill()
    time.sleep(system.timing.lease * system.random.random())
    meanwhile()
    server.start()


def _freeze(system: System, pids: Iterable[int]) -> None:
    frozen = list(pids)
    for pid in frozen:
        _signal(pid, signal.SIGSTOP)
    try:
        time.sleep(2 * system.timing.lease)
    finally:
        for pid in reversed(frozen):
            _signal(pid, signal.SIGCONT)


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _pid(server: Server) -> int:
    assert server.pid is not None, f"{server.name} runs"
    return server.pid
