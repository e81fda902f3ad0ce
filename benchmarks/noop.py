"""5,000 no-op tasks, from the first submit to the last recorded result, with two worker processes.

    python -m benchmarks.noop [--tasks N] [--rounds N] [--json]

Compares Minions (a builtin tool; a sandboxed function) with plain Celery with Redis results and Celery with its
PostgreSQL result backend, all on one private PostgreSQL and Valkey with durable settings, in alternating rounds.
Minions keeps more: the task, its input, an execution and a step survive the loss of the broker, and none is finished
twice.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from sqlalchemy import text
from sqlalchemy.orm import Session

from orchestrator.local.embedded import Addresses, EmbeddedServers, scratch_dir
from shared.contracts.documents import parse_definition
from shared.contracts.requests import TaskRequest
from shared.database.connections import get_engine
from shared.database.schema import migrate
from shared.definitions.apply import store_definitions
from shared.settings import get_settings
from shared.tasks.submission import submit_within

PROCESSES = 2
ROUND_SECONDS = 300.0
POLL_SECONDS = 0.05
DEFINITIONS = (
    {"kind": "tool", "name": "echo", "type": "builtin", "builtin": "echo", "effect": "pure"},
    {"kind": "function", "name": "noop", "code": "def noop(value):\n    return value\n"},
    {"kind": "agent", "name": "bench-tool", "type": "function", "tool": "echo", "config": {"capabilities": ["bench"]}},
    {
        "kind": "agent",
        "name": "bench-function",
        "type": "function",
        "function": "noop",
        "config": {"capabilities": ["bench"]},
    },
)
LIVE = text("SELECT EXISTS (SELECT 1 FROM task_status WHERE state IN ('pending', 'queued', 'running', 'waiting'))")


@dataclass(frozen=True)
class System:
    """One system under test: submits n tasks, and reports whether n more than `before` are recorded."""

    name: str
    submit: Callable[[int], None]
    recorded: Callable[[], int]
    finished: Callable[[int], bool]


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with running_systems() as systems:
        for system in systems:
            measure(system, max(50, options.tasks // 20))  # warm up
        rates: dict[str, list[float]] = {system.name: [] for system in systems}
        for _ in range(options.rounds):
            for system in systems:
                rates[system.name].append(measure(system, options.tasks))
    report(rates, options.tasks, as_json=options.json)


def measure(system: System, tasks: int) -> float:
    """Return the tasks per second of one round.

    Raises:
        TimeoutError: the round did not end.
    """
    before, began = system.recorded(), time.perf_counter()
    system.submit(tasks)
    while not system.finished(before + tasks):
        if time.perf_counter() - began > ROUND_SECONDS:
            raise TimeoutError(f"{system.name}: {system.recorded() - before} of {tasks} tasks after {ROUND_SECONDS} s")
        time.sleep(POLL_SECONDS)
    seconds = time.perf_counter() - began
    if system.recorded() - before != tasks:
        raise AssertionError(f"{system.name}: {system.recorded() - before} of {tasks} tasks succeeded")
    return tasks / seconds


def report(rates: dict[str, list[float]], tasks: int, *, as_json: bool) -> None:
    """Print medians, spread, and the ratio to plain Celery with Redis results."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    base = medians["celery, redis results"]
    rows = [
        {
            "system": name,
            "median_per_second": round(medians[name], 1),
            "lowest": round(min(values), 1),
            "highest": round(max(values), 1),
            "ratio": round(medians[name] / base, 2),
        }
        for name, values in rates.items()
    ]
    if as_json:
        print(json.dumps({"tasks": tasks, "processes": PROCESSES, "rows": rows}, indent=2))
        return
    print(f"{tasks} no-op tasks, {PROCESSES} worker processes, {len(next(iter(rates.values())))} alternating rounds")
    print(f"{'system':30} {'tasks/s':>9} {'lowest':>9} {'highest':>9} {'ratio':>6}")
    for row in rows:
        print("{system:30} {median_per_second:9} {lowest:9} {highest:9} {ratio:6}".format(**row))


@contextmanager
def running_systems() -> Iterator[list[System]]:
    """Provide servers, workers and an orchestrator; they are stopped and removed afterwards."""
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_dir())
        addresses = stack.enter_context(EmbeddedServers(folder)).start()
        configure(addresses, folder)
        migrate(get_engine())
        with Session(get_engine()) as session:
            store_definitions(session, [parse_definition(definition) for definition in DEFINITIONS])
        logs = folder / "processes.log"
        stack.enter_context(process(["-m", "orchestrator.cli", "orchestrator"], {}, logs))
        stack.enter_context(process(["-m", "orchestrator.cli", "worker", "bench", "-c", str(PROCESSES)], {}, logs))
        yield [
            minions_system("minions, builtin tool", "bench-tool"),
            minions_system("minions, sandboxed function", "bench-function"),
            celery_system(stack, "celery, redis results", addresses, 1, socket_url(addresses, 1), logs),
            celery_system(stack, "celery, postgres results", addresses, 2, "db+" + addresses.database_url, logs),
        ]


def configure(addresses: Addresses, folder: Path) -> None:
    """Configure this process and its children."""
    os.environ |= {
        "DATABASE_URL": addresses.database_url,
        "REDIS_URL": addresses.redis_url,
        "MINION_API_KEY": "benchmark-benchmark",
        "MINION_API_PORT": "0",
        "MINION_DATA_DIR": str(folder / "data"),
        "MINION_LOG_LEVEL": "WARNING",
    }
    get_settings.cache_clear()


def minions_system(name: str, agent: str) -> System:
    """Return Minions, with tasks submitted by one call."""
    succeeded = text(
        "SELECT count(*) FROM task_status s JOIN tasks t ON t.id = s.task_id "
        "WHERE t.agent_name = :agent AND s.state = 'succeeded'"
    )

    def submit(tasks: int) -> None:
        requests = [TaskRequest(agent=agent, input={"value": number}) for number in range(tasks)]
        with get_engine().begin() as connection:
            submit_within(connection, requests, submitted_by="benchmark")

    def recorded() -> int:
        with get_engine().connect() as connection:
            return int(connection.scalar(succeeded, {"agent": agent}) or 0)

    def finished(goal: int) -> bool:
        with get_engine().connect() as connection:
            return not connection.scalar(LIVE)

    return System(name, submit, recorded, finished)


def celery_system(stack: ExitStack, name: str, addresses: Addresses, number: int, backend: str, logs: Path) -> System:
    """Return plain Celery with a separate Redis database and the given result backend."""
    environment = {"PLAIN_BROKER": socket_url(addresses, number), "PLAIN_BACKEND": backend}
    arguments = ["-m", "celery", "-A", "benchmarks.plain_celery", "worker", "-c", str(PROCESSES), "-l", "WARNING"]
    stack.enter_context(process([*arguments, "-n", f"plain{number}@%h"], environment, logs))
    from celery import Celery

    app = Celery("submitter", broker=environment["PLAIN_BROKER"], backend=backend)

    def submit(tasks: int) -> None:
        with app.producer_pool.acquire(block=True) as producer:
            for value in range(tasks):
                app.send_task("plain.noop", (value,), producer=producer)

    counter = redis_results(addresses, number) if backend.startswith("redis") else postgres_results
    return System(name, submit, counter, lambda goal: counter() >= goal)


def redis_results(addresses: Addresses, number: int) -> Callable[[], int]:
    """Count the keys in a Redis database: every result is one, and the broker has a few."""
    client = redis.Redis.from_url(addresses.redis_url.replace("db=0", f"db={number}"))
    broker_keys = ("celery", "unacked", "unacked_index", "unacked_mutex", "_kombu.binding.celery",
                   "_kombu.binding.celery.pidbox", "_kombu.binding.celeryev")  # fmt: skip

    def count() -> int:
        size: Any = client.dbsize()
        return int(size) - int(client.exists(*broker_keys))  # type: ignore[arg-type]

    return count


def postgres_results() -> int:
    """Count the rows of Celery's result table, which Celery creates with its first result."""
    with get_engine().connect() as connection:
        if connection.scalar(text("SELECT to_regclass('celery_taskmeta')")) is None:
            return 0
        return int(connection.scalar(text("SELECT count(*) FROM celery_taskmeta WHERE status = 'SUCCESS'")) or 0)


def socket_url(addresses: Addresses, number: int) -> str:
    """Return the URL of a Redis database for Celery, over the private server's socket."""
    path = addresses.redis_url.removeprefix("unix://").partition("?")[0]
    return f"redis+socket://{path}?virtual_host={number}"


@contextmanager
def process(arguments: list[str], environment: dict[str, str], logs: Path) -> Iterator[None]:
    """Run a child process while the block runs."""
    with logs.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, *arguments], env={**os.environ, **environment}, stdout=output, stderr=output
        )
    try:
        yield
    finally:
        child.terminate()
        try:
            child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


if __name__ == "__main__":
    main()
