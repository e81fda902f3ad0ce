"""Agents that wait for a model: turns per second, memory of the workers, processor time of a turn by process.

    python -m benchmarks.agents [--agents N] [--turns N] [--seconds S] [--worker "ARGUMENTS"] [--json]

Each agent has an input of 20 kB and calls one tool in each turn but the last. Its model is a local server whose replies
have 20 events and take S seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.orm import Session

from benchmarks.environment import configure
from benchmarks.latency import process
from orchestrator.local.embedded import EmbeddedServers, scratch_dir
from shared.contracts.documents import parse_definition
from shared.contracts.requests import TaskRequest
from shared.database.connections import get_engine
from shared.database.schema import migrate
from shared.definitions.apply import store_definitions
from shared.tasks.submission import submit_within

HISTORY = "Read the licence of the distribution, and compare it with the list. " * 300
ROUND_SECONDS = 300.0
TICKS = os.sysconf("SC_CLK_TCK")
KINDS = {
    "worker": " worker ",
    "orchestrator": "orchestrator.cli orchestrator",
    "model": "benchmarks.model_server",
    "postgres": "postgres",
    "redis": "valkey",
}
"""Processes by a part of their command line, or of that of a process above them; the first one that fits counts."""
OUTSIDE = "model"
"""The kind that is not part of Minions."""
DEFINITIONS = (
    {
        "kind": "tool",
        "name": "echo",
        "type": "builtin",
        "builtin": "echo",
        "effect": "idempotent",
        "input_schema": {"type": "object", "properties": {"value": {"type": "integer"}}},
    },
    {
        "kind": "agent",
        "name": "bench-agent",
        "type": "agent",
        "model": "claude-bench",
        "tools": ["echo"],
        "system_prompt": "Answer.",
        "config": {"capabilities": ["bench"], "max_turns": 50},
    },
)
STATES = text("SELECT state, count(*) FROM task_status GROUP BY state")
RUNNING = text("SELECT count(*) FROM task_status WHERE state = 'running'")


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--agents", type=int, default=200)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--worker", default="-m orchestrator.cli worker bench -c 2", help="arguments of Python")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with running(options.worker.split(), options.seconds, options.turns) as folder:
        work(4)  # warm up
        figures = measure(folder, options.agents, options.turns)
    report(figures, options.agents, options.turns, options.seconds, as_json=options.json)


@contextmanager
def running(worker: list[str], seconds: float, turns: int) -> Iterator[Path]:
    """Provide servers, a model, an orchestrator and a worker; yield the folder of the servers."""
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_dir())
        configure(stack.enter_context(EmbeddedServers(folder)).start(), folder)
        port = free_port()
        os.environ |= {"ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}", "ANTHROPIC_API_KEY": "benchmark"}
        migrate(get_engine())
        with Session(get_engine()) as session:
            store_definitions(session, [parse_definition(definition) for definition in DEFINITIONS])
        logs = folder / "processes.log"
        model = ["-m", "benchmarks.model_server", str(port), str(seconds), str(turns)]
        for arguments in (model, ["-m", "orchestrator.cli", "orchestrator"], worker):
            stack.enter_context(process(arguments, {}, logs))
        try:
            yield folder
        except BaseException:
            print(logs.read_text()[-3000:])
            raise


def measure(folder: Path, agents: int, turns: int) -> dict[str, float]:
    """Run the agents; return the figures by name."""
    before, began = seconds_by_kind(folder), time.perf_counter()
    watch = Watch(folder)
    watch.start()
    work(agents)
    seconds = time.perf_counter() - began
    spent = seconds_by_kind(folder)
    spent.subtract(before)
    watch.stop()
    total = agents * turns
    each = {f"{kind}_ms": round(1000 * used / total, 2) for kind, used in spent.items()}
    ours = 1000 * sum(used for kind, used in spent.items() if kind != OUTSIDE) / total
    memory = {"most_in_flight": watch.running, "worker_pss_mb": round(watch.pss / 1e6)}
    return {"turns_per_second": round(total / seconds, 1), **memory, **each, "all_but_model_ms": round(ours, 2)}


def report(figures: dict[str, float], agents: int, turns: int, seconds: float, *, as_json: bool) -> None:
    """Print the figures. Times are milliseconds of processor time for each turn."""
    if as_json:
        print(json.dumps({"agents": agents, "turns": turns, "seconds": seconds, **figures}, indent=2))
        return
    print(f"{agents} agents with {turns} turns of {seconds:g} s")
    for name, figure in figures.items():
        print(f"{name:20} {figure:9}")


def work(agents: int) -> None:
    """Submit tasks and wait until all have succeeded.

    Raises:
        AssertionError: one of them failed.
        TimeoutError: they did not end.
    """
    requests = [TaskRequest(agent="bench-agent", input={"text": HISTORY}) for _ in range(agents)]
    with get_engine().begin() as connection:
        submit_within(connection, requests, submitted_by="benchmark")
    began = time.monotonic()
    while (found := states()).keys() & {"pending", "queued", "running", "waiting"}:
        if time.monotonic() - began > ROUND_SECONDS:
            raise TimeoutError(f"{dict(found)} after {ROUND_SECONDS} s")
        time.sleep(0.1)
    if found.keys() != {"succeeded"}:
        raise AssertionError(f"not all succeeded: {dict(found)}")


def states() -> Counter[str]:
    """Count the tasks by state."""
    with get_engine().connect() as connection:
        return Counter({str(state): int(count) for state, count in connection.execute(STATES)})


class Watch(threading.Thread):
    """Observes the highest memory of the workers and the highest number of running tasks, twice a second."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self.pss = 0
        self.running = 0
        self._ended = threading.Event()

    def run(self) -> None:
        """Observe until `stop` is called."""
        while not self._ended.wait(0.5):
            workers = [pid for pid, kind in processes(self.folder).items() if kind == "worker"]
            self.pss = max(self.pss, sum(map(pss, workers)))
            with get_engine().connect() as connection:
                self.running = max(self.running, int(connection.scalar(RUNNING) or 0))

    def stop(self) -> None:
        """End the observation."""
        self._ended.set()
        self.join()


def seconds_by_kind(folder: Path) -> Counter[str]:
    """Return the processor time of each kind of process, with that of children that have ended."""
    spent: Counter[str] = Counter()
    for pid, kind in processes(folder).items():
        with suppress(OSError):
            # User and system time, of the process and of its ended children.
            spent[kind] += sum(map(int, stat(pid)[11:15])) / TICKS  # type: ignore[assignment]
    return spent


def processes(folder: Path) -> dict[int, str]:
    """Return the processes of the benchmark by id: those below this one, and the servers of the folder."""
    parents, lines = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                pid = int(entry.name)
                parents[pid] = int(stat(pid)[1])
                lines[pid] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    found = {}
    for pid in lines:
        chain = [pid]
        while chain[-1] in parents and chain[-1] != os.getpid():
            chain.append(parents[chain[-1]])
        said = " | ".join(lines.get(each, "") for each in chain[:-1])
        kind = next((kind for kind, mark in KINDS.items() if mark in said), None)
        if kind and pid != os.getpid() and (chain[-1] == os.getpid() or str(folder) in said):
            found[pid] = kind
    return found


def stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the program's name, which may contain spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def pss(pid: int) -> int:
    """Return the bytes of a process, with its part of what it shares; 0 if it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
