"""Memory of a worker for each slot of its prefork pool.

    python -m benchmarks.memory [--slots 1,4,16] [--json]

Starts one worker for each number of slots, on private servers, and measures it twice: idle, and after each slot has run
model turns with a builtin tool, and sandboxed functions. Memory is PSS, the proportional set size, of the whole tree of
processes: a page that n processes share counts as 1/n in each. Run it as root, who may read the sandbox's processes.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from minions import testing
from orchestrator.local.embedded import EmbeddedServers, scratch_dir
from shared.contracts.documents import parse_definition
from shared.contracts.requests import TaskRequest
from shared.database.connections import get_engine
from shared.database.schema import migrate
from shared.definitions.apply import store_definitions
from shared.settings import get_settings
from shared.tasks.submission import submit_within
from tests.support.processes import Process, wait_until

WAVES = 3
PATIENCE_SECONDS = 120.0
TURN_SECONDS = 2.0
"""Seconds of a model turn: long enough for the next tasks to find other slots."""
BUSY = "import time\n\ndef busy(value):\n    time.sleep(1)\n    return value\n"
DEFINITIONS: tuple[dict[str, Any], ...] = (
    {"kind": "tool", "name": "echo", "type": "builtin", "builtin": "echo", "effect": "pure"},
    {
        "kind": "function",
        "name": "busy",
        "code": BUSY,
        "input_schema": {"type": "object", "properties": {"value": {"type": "integer"}}, "required": ["value"]},
        "config": {"allowed_imports": ["time"]},
    },
    {
        "kind": "agent",
        "name": "bench-function",
        "type": "function",
        "function": "busy",
        "config": {"capabilities": ["bench"]},
    },
    {
        "kind": "agent",
        "name": "bench-agent",
        "type": "agent",
        "system_prompt": "Echo.",
        "model": "claude-sonnet-5-5",
        "tools": ["echo"],
        "config": {"capabilities": ["bench"]},
    },
)
REGISTERED = text("SELECT EXISTS (SELECT 1 FROM workers WHERE status = 'online' AND slots = :slots)")
LIVE = text("SELECT EXISTS (SELECT 1 FROM task_status WHERE state IN ('pending', 'queued', 'running', 'waiting'))")
SUCCEEDED = text("SELECT count(*) FROM task_status WHERE state = 'succeeded'")


@dataclass(frozen=True)
class Measured:
    """One process of the worker's tree.

    Attributes:
        kind: "main", "slot", "sandbox" (the processes of one: waiter, zygote, parked children) or "other".
        pss: bytes.
        private: bytes of pages that no other process maps.
    """

    kind: str
    pss: int
    private: int


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--slots", type=lambda given: [int(each) for each in given.split(",")], default=[1, 4, 16])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with scratch_dir() as folder, _system(folder):
        rows = [row for slots in sorted(options.slots) for row in _measure(slots, folder)]
    report(rows, as_json=options.json)


@contextmanager
def _system(folder: Path) -> Iterator[None]:
    """Run the servers, a Messages API and the orchestrator's loops while the block runs."""
    with ExitStack() as stack:
        addresses = stack.enter_context(EmbeddedServers(folder)).start()
        api = stack.enter_context(testing.messages_api())
        api.script = [
            testing.text("done", **{"if": "tool_result"}),
            testing.tool_use(("echo", {"value": 1}), seconds=TURN_SECONDS),
        ]
        os.environ |= {
            "DATABASE_URL": addresses.database_url,
            "REDIS_URL": addresses.redis_url,
            "MINION_API_KEY": "benchmark-benchmark",
            "MINION_API_PORT": str(_free_port()),
            "MINION_DATA_DIR": str(folder / "data"),
            "MINION_LOG_LEVEL": "WARNING",
            "ANTHROPIC_BASE_URL": api.url,
            "ANTHROPIC_API_KEY": testing.KEY,
        }
        get_settings.cache_clear()
        migrate(get_engine())
        with Session(get_engine()) as session:
            store_definitions(session, [parse_definition(definition) for definition in DEFINITIONS])
        stack.enter_context(_running("orchestrator", folder))
        yield


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _running(command: str, folder: Path) -> Iterator[Process]:
    """Run `minion COMMAND` while the block runs."""
    process = Process(
        [sys.executable, "-m", "orchestrator.cli", *command.split()], folder / "processes.log", {"PYTHONWARNINGS": ""}
    )
    try:
        yield process
        process.stop()
    finally:
        process.kill()


def _measure(slots: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a worker's rows of the table, idle and after work."""
    with _running(f"worker bench -c {slots}", folder) as worker:
        wait_until(lambda: _scalar(REGISTERED, slots=slots), "the worker is online", PATIENCE_SECONDS)
        yield {"slots": slots, "phase": "idle", **_summary(_settled(worker.pid))}
        for _ in range(WAVES):
            _work(slots)
        yield {"slots": slots, "phase": "after work", **_summary(_settled(worker.pid))}


def _work(slots: int) -> None:
    """Keep each slot busy, with functions and with model turns.

    Raises:
        AssertionError: a task did not succeed.
    """
    for agent in ("bench-function", "bench-agent"):
        before = _scalar(SUCCEEDED)
        with get_engine().begin() as connection:
            requests = [TaskRequest(agent=agent, input={"value": number}) for number in range(2 * slots)]
            submit_within(connection, requests, submitted_by="benchmark")
        wait_until(lambda: not _scalar(LIVE), f"the tasks of {agent} are done", PATIENCE_SECONDS)
        if _scalar(SUCCEEDED) - before != 2 * slots:
            raise AssertionError(f"{agent}: {_scalar(SUCCEEDED) - before} of {2 * slots} tasks succeeded")


def _scalar(statement: Any, **values: Any) -> Any:
    with get_engine().connect() as connection:
        return connection.scalar(statement, values)


# ----------------------------------------------------------------------------------------- processes


def _settled(root: int) -> list[Measured]:
    """Return the processes of a worker when their memory no longer changes."""
    earlier = -1
    while True:
        found = list(_tree(root, "main"))
        total = sum(each.pss for each in found)
        if abs(total - earlier) < total / 200:
            return found
        earlier = total
        time.sleep(2)


def _tree(pid: int, kind: str) -> Iterator[Measured]:
    try:
        yield Measured(kind, *_memory(pid))
        for child in _children(pid):
            yield from _tree(child, _kind(child, pid, kind))
    except (FileNotFoundError, ProcessLookupError):
        return


def _kind(pid: int, parent: int, kind_of_parent: str) -> str:
    if kind_of_parent in ("slot", "sandbox"):
        return "sandbox"
    is_fork = Path(f"/proc/{pid}/cmdline").read_bytes() == Path(f"/proc/{parent}/cmdline").read_bytes()
    return "slot" if is_fork else "other"


def _children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def _memory(pid: int) -> tuple[int, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    bytes_of = {name: int(amount.split()[0]) << 10 for name, _, amount in (line.partition(":") for line in lines)}
    return bytes_of["Pss"], bytes_of["Private_Clean"] + bytes_of["Private_Dirty"]


# ----------------------------------------------------------------------------------------- the table


def _summary(processes: list[Measured]) -> dict[str, Any]:
    """Sum up megabytes by kind of process."""
    pss: Counter[str] = Counter()
    private: Counter[str] = Counter()
    for each in processes:
        pss[each.kind] += each.pss
        private[each.kind] += each.private
    number = Counter(each.kind for each in processes)
    return {
        "processes": len(processes),
        "total_mb": _megabytes(sum(pss.values())),
        **{f"{kind}_mb": _megabytes(pss[kind]) for kind in ("main", "slot", "sandbox", "other")},
        "private_mb_of_a_slot": _megabytes(private["slot"] / max(1, number["slot"])),
    }


def _megabytes(size: float) -> float:
    return round(size / (1 << 20), 1)


def report(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print the table, and the megabytes of each additional slot: the difference between two sizes of the pool."""
    by_phase: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_phase.setdefault(row["phase"], []).append(row)
    for same_phase in by_phase.values():
        for smaller, larger in pairwise(same_phase):
            more = larger["slots"] - smaller["slots"]
            larger["mb_of_an_additional_slot"] = round((larger["total_mb"] - smaller["total_mb"]) / more, 1)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    print("PSS in MB of a worker and all its processes")
    heads = ("slots", "phase", "total", "main", "slots'", "sandboxes", "other", "private/slot", "an additional slot")
    names = ("slots", "phase", "total_mb", "main_mb", "slot_mb", "sandbox_mb", "other_mb", "private_mb_of_a_slot",
             "mb_of_an_additional_slot")  # fmt: skip
    print(" ".join(f"{head:>12}" for head in heads))
    for row in rows:
        print(" ".join(f"{row.get(name, ''):>12}" for name in names))


if __name__ == "__main__":
    main()
