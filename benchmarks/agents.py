"""Model-bound agents in flight: turns per second, memory of the workers, CPU per turn by process.

    python -m benchmarks.agents [--agents N] [--turns N] [--seconds S] [--worker "ARGUMENTS"] [--json]

Each agent has a history of 20 kB, and makes one tool call a turn. Its model is a local server whose replies have 20
events and last S seconds.
"""

from __future__ import annotations

import argparse
import os
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.orm import Session

from benchmarks.noop import configure, process
from orchestrator.local.embedded import EmbeddedServers, scratch_dir
from shared.contracts.documents import parse_definition
from shared.contracts.requests import TaskRequest
from shared.database.connections import get_engine
from shared.database.schema import migrate
from shared.definitions.apply import store_definitions
from shared.tasks.submission import submit_within

HISTORY = "Read the licence of the distribution, and compare it with the list. " * 300
FOLDER = ["?"]
TICK = os.sysconf("SC_CLK_TCK")
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
ENDED = text("SELECT state, count(*) FROM task_status GROUP BY 1")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--agents", type=int, default=200)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--worker", default="-m orchestrator.cli worker bench -c 2")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_dir())
        addresses = stack.enter_context(EmbeddedServers(folder)).start()
        FOLDER[0] = str(folder)
        configure(addresses, folder)
        port = free_port()
        os.environ |= {"ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}", "ANTHROPIC_API_KEY": "benchmark"}
        migrate(get_engine())
        with Session(get_engine()) as session:
            store_definitions(session, [parse_definition(definition) for definition in DEFINITIONS])
        logs = folder / "processes.log"
        try:
            server = ["-m", "benchmarks.model_server", str(port), str(options.seconds), str(options.turns)]
            stack.enter_context(process(server, {}, logs))
            stack.enter_context(process(["-m", "orchestrator.cli", "orchestrator"], {}, logs))
            stack.enter_context(process(options.worker.split(), {}, logs))
            run(4, options.turns)
            cpu, began = cpu_by_kind(), time.perf_counter()
            watch = Watch()
            watch.start()
            run(options.agents, options.turns)
            seconds = time.perf_counter() - began
            watch.ended.set()
            watch.join()
            turns = options.agents * options.turns
            spent = {kind: 1000 * (now - cpu.get(kind, 0.0)) / turns for kind, now in cpu_by_kind().items()}
            print(
                f"{options.agents} agents x {options.turns} turns of {options.seconds} s: {turns / seconds:.1f} turns/s, "
                f"most in flight {watch.flying}, worker PSS {watch.pss / 1e6:.0f} MB"
            )
            print("CPU ms per turn: " + ", ".join(f"{kind} {ms:.2f}" for kind, ms in spent.items()))
            total = sum(ms for kind, ms in spent.items() if kind not in ("model", "driver"))
            print(f"all but model and driver: {total:.2f}")
        finally:
            print(logs.read_text()[-3000:])


def run(agents: int, turns: int) -> None:
    requests = [TaskRequest(agent="bench-agent", input={"text": HISTORY}) for _ in range(agents)]
    with get_engine().begin() as connection:
        submit_within(connection, requests, submitted_by="benchmark")
    began = time.monotonic()
    while True:
        with get_engine().connect() as connection:
            found = dict(connection.execute(ENDED).all())
        if not set(found) & {"pending", "queued", "running", "waiting"}:
            break
        if time.monotonic() - began > 300:
            raise TimeoutError(found)
        time.sleep(0.1)
    if set(found) != {"succeeded"}:
        raise AssertionError(found)


class Watch(threading.Thread):
    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.pss, self.flying = 0, 0

    def run(self) -> None:
        while not self.ended.wait(0.5):
            self.pss = max(self.pss, sum(pss(pid) for pid, kind in kinds().items() if kind == "worker"))
            with get_engine().connect() as connection:
                n = connection.scalar(text("SELECT count(*) FROM task_status WHERE state = 'running'"))
            self.flying = max(self.flying, n)


def kinds() -> dict[int, str]:
    """The processes below this one, by kind."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
    found = {}
    for pid in names:
        chain, at = [], pid
        while at in parents and at != os.getpid() and at != 1:
            chain.append(at)
            at = parents[at]
        line = " | ".join(names[p] for p in chain)
        if (at == os.getpid() and chain) or FOLDER[0] in line:
            kind = next(
                (
                    k
                    for k, mark in (
                        ("worker", "worker"),
                        ("orchestrator", "cli orchestrator"),
                        ("model", "model_server"),
                        ("postgres", "postgres"),
                        ("redis", "valkey"),
                    )
                    if mark in line or mark in names[pid]
                ),
                None,
            )
            if kind:
                found[pid] = kind
    return found


def cpu_by_kind() -> dict[str, float]:
    spent: dict[str, float] = {}
    for pid, kind in kinds().items():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        own = int(fields[11]) + int(fields[12])
        dead = int(fields[13]) + int(fields[14])
        spent[kind] = spent.get(kind, 0.0) + (own + dead) / TICK
    return spent


def pss(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
