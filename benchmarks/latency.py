"""One task at a time, submitted over HTTP and waited for, beside plain Celery's round trip in the same rounds.

    python -m benchmarks.latency [--rounds N] [--tasks N] [--json]

All systems use one private PostgreSQL and Valkey with durable settings, and two worker processes. Each round makes one
round trip on each system, so that the load of the machine is the same for all. Afterwards, a batch of tasks of each
kind shows the CPU time that one tiny task takes, by process.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery
from sqlalchemy import text
from sqlalchemy.orm import Session

from benchmarks.noop import DEFINITIONS, LIVE, POLL_SECONDS, configure, socket_url
from minions import Client
from orchestrator.local.embedded import EmbeddedServers, scratch_dir
from shared.contracts.documents import parse_definition
from shared.database.connections import get_engine
from shared.database.schema import migrate
from shared.definitions.apply import store_definitions
from shared.settings import get_settings

PROCESSES = 2
WARM_UP = 20
PATIENCE = 120.0
CELERY = "celery, redis results"
SINGLE = "minions, builtin tool"
CHAIN = "minions, chain of 3"
AGENTS = {
    SINGLE: "bench-tool",
    "minions, sandboxed function": "bench-function",
    CHAIN: "bench-chain",
}
CHAIN_DEFINITION = {
    "kind": "agent",
    "name": "bench-chain",
    "type": "function",
    "relations": [{"agent": "bench-tool"}] * 3,
    "config": {"capabilities": ["bench"], "chain_strategy": "sequential"},
}
TICKS = os.sysconf("SC_CLK_TCK")

# The time from the end of a task's last sub-task to the task's next execution.
WAKE_UPS = text(
    """
    SELECT extract(epoch FROM e.started_at - (
            SELECT max(o.finished_at) FROM tasks c JOIN task_overview o ON o.id = c.id
                WHERE c.parent_id = e.task_id AND o.finished_at < e.started_at))
        FROM executions e JOIN tasks t ON t.id = e.task_id
        WHERE t.agent_name = :agent AND e.claim > 1
    """
)


@dataclass
class Processes:
    """The processes of a system under test, by role.

    Attributes:
        roots: the main process of each role; all processes below it count too.
        apart: roles whose main process is counted apart from those below it, with the name for these.
    """

    roots: dict[str, int] = field(default_factory=dict)
    apart: dict[str, str] = field(default_factory=dict)

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU time of each role so far, including that of processes that have ended."""
        children = _children()
        used: dict[str, float] = {}
        for role, pid in self.roots.items():
            used[role] = _own_cpu(pid, with_ended=role not in self.apart)
            below = self.apart.get(role, role)
            used[below] = used.get(below, 0.0) + sum(_own_cpu(child) for child in _below(pid, children))
        return used


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--tasks", type=int, default=1000, help="tasks of each kind for the CPU time")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with running() as (trips, client, processes):
        samples = measure(trips, options.rounds)
        wakes = wake_ups(AGENTS[CHAIN])
        cpu = {
            name: cpu_per_task(client, AGENTS[name], options.tasks, processes)
            for name in AGENTS
            if options.tasks and name != CHAIN
        }
    report(samples, wakes, cpu, as_json=options.json)


def measure(trips: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each round trip, one of each system a round."""
    for _ in range(WARM_UP):
        for trip in trips.values():
            trip()
    samples: dict[str, list[float]] = {name: [] for name in trips}
    for _ in range(rounds):
        for name, trip in trips.items():
            began = time.perf_counter()
            trip()
            samples[name].append(time.perf_counter() - began)
    return samples


def over_http(client: Client, agent: str) -> Callable[[], None]:
    """Return a round trip: submit one task and wait for its output."""

    def trip() -> None:
        client.submit(agent, {"value": 1}, wait=30).result(PATIENCE)

    return trip


def through_celery(app: Any) -> Callable[[], None]:
    """Return plain Celery's round trip: send one task and wait for its result."""

    def trip() -> None:
        app.send_task("plain.noop", (1,)).get(timeout=PATIENCE)

    return trip


def wake_ups(agent: str) -> list[float]:
    """Return the seconds from the end of each last sub-task to the next start of its task."""
    with get_engine().connect() as connection:
        return [float(seconds) for seconds in connection.scalars(WAKE_UPS, {"agent": agent}) if seconds is not None]


def cpu_per_task(client: Client, agent: str, tasks: int, processes: Processes) -> dict[str, float]:
    """Return the CPU seconds that one of many tasks takes, by process, from the first submit to the last record."""
    before = processes.cpu_seconds()
    client.submit_many([{"agent": agent, "input": {"value": number}} for number in range(tasks)])
    began = time.perf_counter()
    with get_engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while connection.scalar(LIVE):
            if time.perf_counter() - began > PATIENCE:
                raise TimeoutError(f"{agent}: tasks are still unfinished after {PATIENCE:g} s")
            time.sleep(POLL_SECONDS)
    after = processes.cpu_seconds()
    return {role: (after[role] - before[role]) / tasks for role in after}


def percentile(samples: list[float], share: float) -> float:
    """Return the sample below which that share of all samples lies."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def report(
    samples: Mapping[str, list[float]],
    wakes: list[float],
    cpu: Mapping[str, Mapping[str, float]],
    *,
    as_json: bool,
) -> None:
    """Print round trips with their ratios to plain Celery's median, and the CPU time by process."""
    base = statistics.median(samples[CELERY])
    single = statistics.median(samples[SINGLE])
    rows = [row(name, seconds, base) for name, seconds in samples.items()]
    rows.append(row("wake-up of a parent", wakes, base))
    chain = round(statistics.median(samples[CHAIN]) / single, 2)
    micros = {name: {role: round(seconds * 1e6) for role, seconds in used.items()} for name, used in cpu.items()}
    if as_json:
        print(json.dumps({"rows": rows, "chain_to_single": chain, "cpu_microseconds": micros}, indent=2))
        return
    print(f"{len(samples[CELERY])} round trips each, one at a time; a chain takes {chain} single tasks")
    print(f"{'':30} {'p50 ms':>8} {'p99 ms':>8} {'ratio':>6} {'p99 ratio':>9}")
    for line in rows:
        print("{name:30} {p50_ms:8} {p99_ms:8} {ratio:6} {p99_ratio:9}".format(**line))
    for name, used in micros.items():
        print(f"CPU us a task, {name}: {sum(used.values())} (" + ", ".join(f"{k} {v}" for k, v in used.items()) + ")")


def row(name: str, seconds: list[float], base: float) -> dict[str, Any]:
    """Return a line of the table: milliseconds, and ratios to the median of plain Celery."""
    p50, p99 = statistics.median(seconds), percentile(seconds, 0.99)
    return {
        "name": name,
        "p50_ms": round(p50 * 1e3, 2),
        "p99_ms": round(p99 * 1e3, 2),
        "ratio": round(p50 / base, 2),
        "p99_ratio": round(p99 / base, 2),
    }


@contextmanager
def running() -> Iterator[tuple[dict[str, Callable[[], None]], Client, Processes]]:
    """Provide servers, workers and an orchestrator; yield the round trips, a client, and the processes of Minions."""
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_dir())
        servers = stack.enter_context(EmbeddedServers(folder))
        addresses = servers.start()
        configure(addresses, folder)
        os.environ["MINION_API_PORT"] = str(_free_port())
        get_settings.cache_clear()
        migrate(get_engine())
        definitions = [parse_definition(definition) for definition in (*DEFINITIONS, CHAIN_DEFINITION)]
        with Session(get_engine()) as session:
            store_definitions(session, definitions)
        logs = folder / "processes.log"
        orchestrator = stack.enter_context(_process(["-m", "orchestrator.cli", "orchestrator"], {}, logs))
        worker = stack.enter_context(
            _process(["-m", "orchestrator.cli", "worker", "bench", "-c", str(PROCESSES)], {}, logs)
        )
        broker = socket_url(addresses, 1)
        environment = {"PLAIN_BROKER": broker, "PLAIN_BACKEND": broker}
        plain = ["-m", "celery", "-A", "benchmarks.plain_celery", "worker", "-c", str(PROCESSES), "-l", "WARNING"]
        stack.enter_context(_process([*plain, "-n", "plain@%h"], environment, logs))
        client = stack.enter_context(
            Client(f"http://127.0.0.1:{get_settings().api_port}", "benchmark-benchmark", retries=20)
        )
        trips = {CELERY: through_celery(Celery("submitter", broker=broker, backend=broker))}
        trips |= {name: over_http(client, agent) for name, agent in AGENTS.items()}
        roots = {
            "worker": worker,
            "orchestrator": orchestrator,
            "postgres": servers.postgres.pid or 0,
            "redis": servers.valkey.pid or 0,
        }
        yield trips, client, Processes(roots, {"worker": "children"})


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _process(arguments: list[str], environment: dict[str, str], logs: Path) -> Iterator[int]:
    """Run a child process while the block runs; yield its pid."""
    with logs.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, *arguments], env={**os.environ, **environment}, stdout=output, stderr=output
        )
    try:
        yield child.pid
    finally:
        child.terminate()
        try:
            child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _children() -> dict[int, list[int]]:
    """Return the children of each process of this machine."""
    found: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                found.setdefault(int(_stat(int(folder.name))[1]), []).append(int(folder.name))
    return found


def _below(pid: int, children: Mapping[int, list[int]]) -> list[int]:
    return [below for child in children.get(pid, []) for below in (child, *_below(child, children))]


def _own_cpu(pid: int, *, with_ended: bool = True) -> float:
    """Return the CPU seconds of a process, and of its children that have ended."""
    try:
        fields = _stat(pid)
    except OSError:
        return 0.0
    return sum(int(ticks) for ticks in fields[11 : 15 if with_ended else 13]) / TICKS


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name of the program: state, parent, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


if __name__ == "__main__":
    main()
