"""One task at a time, submitted over HTTP and waited for, beside plain Celery's round trip in the same rounds.

    python -m benchmarks.latency [--rounds N] [--json]

All systems use one private PostgreSQL and Valkey with durable settings, and two worker processes. Each round makes one
round trip on each system, so that the load of the machine is the same for all.
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
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from celery import Celery
from sqlalchemy import text
from sqlalchemy.orm import Session

from minions import Client
from orchestrator.local.embedded import Addresses, EmbeddedServers, scratch_dir
from shared.contracts.documents import parse_definition
from shared.database.connections import get_engine
from shared.database.schema import migrate
from shared.definitions.apply import store_definitions
from shared.settings import get_settings

PROCESSES = 2
WARM_UP = 20
PATIENCE = 120.0
WAIT = 30.0
KEY = "benchmark-benchmark"
CELERY = "celery, redis results"
SINGLE = "minions, builtin tool"
CHAIN = "minions, chain of 3"
DEFINITIONS: tuple[dict[str, Any], ...] = (
    {"kind": "tool", "name": "echo", "type": "builtin", "builtin": "echo", "effect": "pure"},
    {"kind": "function", "name": "noop", "code": "def noop(value):\n    return value\n"},
    {"kind": "agent", "name": "tool", "type": "function", "tool": "echo", "config": {"capabilities": ["bench"]}},
    {
        "kind": "agent",
        "name": "function",
        "type": "function",
        "function": "noop",
        "config": {"capabilities": ["bench"]},
    },
    {
        "kind": "agent",
        "name": "chain",
        "type": "function",
        "relations": [{"agent": "tool"}] * 3,
        "config": {"capabilities": ["bench"], "chain_strategy": "sequential"},
    },
)
# The time from the end of a task's last sub-task to the task's next execution.
WAKE_UPS = text(
    """
    SELECT extract(epoch FROM e.started_at - (
            SELECT max(o.finished_at) FROM tasks c JOIN task_overview o ON o.id = c.id
                WHERE c.parent_id = e.task_id AND o.finished_at < e.started_at))
        FROM executions e JOIN tasks t ON t.id = e.task_id
        WHERE t.agent_name = 'chain' AND e.claim > 1
    """
)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with running() as trips:
        samples = measure(trips, options.rounds)
        wakes = wake_ups()
    report(samples, wakes, as_json=options.json)


def measure(trips: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
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


def wake_ups() -> list[float]:
    """Return the seconds from the end of each last sub-task to the next start of its task."""
    with get_engine().connect() as connection:
        return [float(seconds) for seconds in connection.scalars(WAKE_UPS) if seconds is not None]


def report(samples: Mapping[str, list[float]], wakes: list[float], *, as_json: bool) -> None:
    """Print round trips with their ratios to plain Celery's median."""
    base = statistics.median(samples[CELERY])
    rows = [row(name, seconds, base) for name, seconds in samples.items()]
    rows.append(row("wake-up of a parent", wakes, base))
    chain = round(statistics.median(samples[CHAIN]) / statistics.median(samples[SINGLE]), 2)
    if as_json:
        print(json.dumps({"rows": rows, "chain_to_single": chain}, indent=2))
        return
    print(f"{len(samples[CELERY])} round trips each, one at a time; a chain takes {chain} single tasks")
    print(f"{'':38} {'p50 ms':>8} {'p99 ms':>8} {'ratio':>6} {'p99 ratio':>9}")
    for line in rows:
        print("{name:38} {p50_ms:8} {p99_ms:8} {ratio:6} {p99_ratio:9}".format(**line))


def row(name: str, seconds: list[float], base: float) -> dict[str, Any]:
    """Return a line of the table: milliseconds, and ratios to the median of plain Celery."""
    p50, p99 = statistics.median(seconds), sorted(seconds)[int(len(seconds) * 0.99)]
    return {
        "name": name,
        "p50_ms": round(p50 * 1e3, 2),
        "p99_ms": round(p99 * 1e3, 2),
        "ratio": round(p50 / base, 2),
        "p99_ratio": round(p99 / base, 2),
    }


@contextmanager
def running() -> Iterator[dict[str, Callable[[], object]]]:
    """Provide servers, workers and an orchestrator; yield a round trip for each system."""
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
        # Redis's second database, over the server's socket.
        broker = f"redis+socket://{addresses.redis_url.removeprefix('unix://').partition('?')[0]}?virtual_host=1"
        plain = ["-m", "celery", "-A", "benchmarks.apps.celery_app", "worker", "-c", str(PROCESSES), "-l", "WARNING"]
        stack.enter_context(process(plain, {"BENCH_BROKER": broker, "BENCH_BACKEND": broker}, logs))
        client = stack.enter_context(Client(f"http://127.0.0.1:{get_settings().api_port}", KEY, retries=20))
        app = Celery("submitter", broker=broker, backend=broker)

        def over_http(agent: str) -> Callable[[], object]:
            return lambda: client.submit(agent, {"value": 1}, wait=WAIT).result(PATIENCE)

        yield {
            CELERY: lambda: app.send_task("bench.noop", (1,)).get(timeout=PATIENCE),
            SINGLE: over_http("tool"),
            f"{SINGLE}, two requests": lambda: client.submit("tool", {"value": 1}).result(PATIENCE),
            "minions, sandboxed function": over_http("function"),
            CHAIN: over_http("chain"),
        }


def configure(addresses: Addresses, folder: Path) -> None:
    """Configure this process and its children."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "DATABASE_URL": addresses.database_url,
        "REDIS_URL": addresses.redis_url,
        "MINION_API_KEY": KEY,
        "MINION_API_PORT": str(port),
        "MINION_DATA_DIR": str(folder / "data"),
        "MINION_LOG_LEVEL": "WARNING",
    }
    get_settings.cache_clear()


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
