"""Memory of a worker for each slot of its prefork pool.

    python -m benchmarks.memory [--slots 1,4,16] [--json]

Starts one worker for each number of slots, on private servers, and measures it twice: idle, and after each slot has run
model turns with a builtin tool, and sandboxed functions. Memory is PSS, the proportional set size, of the whole tree of
processes: a page that n processes share counts as 1/n in each. Run it as root, who may read the sandbox's processes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from sqlalchemy import text

from benchmarks.environment import Environment
from benchmarks.processes import Memory, Processes, command_line, memory
from benchmarks.systems.minions import SANDBOX, Installation, scalar, submit_to, wait_for_all
from minions import testing

WAVES = 3
PATIENCE_SECONDS = 120.0
TURN_SECONDS = 2.0
"""Seconds of a model turn: long enough for the next tasks to find other slots."""
REPLIES = (
    testing.text("done", **{"if": "tool_result"}),
    testing.tool_use(("echo", {"value": 1}), seconds=TURN_SECONDS),
)
CAPABILITY = "bench-memory"
BUSY = "import time\n\ndef busy(value):\n    time.sleep(1)\n    return value\n"
DEFINITIONS: tuple[dict[str, Any], ...] = (
    {
        "kind": "function",
        "name": "busy",
        "code": BUSY,
        "input_schema": {"type": "object", "properties": {"value": {"type": "integer"}}, "required": ["value"]},
        "config": {"allowed_imports": ["time"]},
    },
    {
        "kind": "agent",
        "name": "bench-busy",
        "type": "function",
        "function": "busy",
        "config": {"capabilities": [CAPABILITY]},
    },
    {
        "kind": "agent",
        "name": "bench-agent",
        "type": "agent",
        "system_prompt": "Echo.",
        "model": "claude-sonnet-5-5",
        "tools": ["echo"],
        "config": {"capabilities": [CAPABILITY]},
    },
)
SUCCEEDED = text("SELECT count(*) FROM task_status WHERE state = 'succeeded'")


KINDS = ("main", "slot", "sandbox", "other")
"""Kinds of processes in a worker's tree. A sandbox has several: waiter, zygote and parked children."""
Measured = tuple[str, Memory]
"""The kind and the memory of one process."""


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--slots", type=lambda given: [int(each) for each in given.split(",")], default=[1, 4, 16])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with Environment(REPLIES) as environment:
        minions = Installation(environment)
        minions.define(*DEFINITIONS)
        rows = [row for slots in sorted(options.slots) for row in _measure(minions, slots)]
    report(rows, as_json=options.json)


def _measure(minions: Installation, slots: int) -> Iterator[dict[str, Any]]:
    """Yield a worker's rows of the table, idle and after work."""
    worker = minions.start_worker(CAPABILITY, slots)
    yield {"slots": slots, "phase": "idle", **_summary(_settled(worker.pid))}
    for _ in range(WAVES):
        _work(slots)
    yield {"slots": slots, "phase": "after work", **_summary(_settled(worker.pid))}
    worker.stop()


def _work(slots: int) -> None:
    """Keep each slot busy, with functions and with model turns.

    Raises:
        AssertionError: a task did not succeed.
    """
    for agent in ("bench-busy", "bench-agent"):
        before = scalar(SUCCEEDED)
        submit_to(agent, 2 * slots)
        wait_for_all(PATIENCE_SECONDS)
        if scalar(SUCCEEDED) - before != 2 * slots:
            raise AssertionError(f"{agent}: {scalar(SUCCEEDED) - before} of {2 * slots} tasks succeeded")


# ----------------------------------------------------------------------------------------- processes


def _settled(root: int) -> list[Measured]:
    """Return the processes of a worker when their memory no longer changes."""
    earlier = -1
    while True:
        found = list(_tree(Processes(), root, "main"))
        total = sum(each.pss for _, each in found)
        if abs(total - earlier) < total / 200:
            return found
        earlier = total
        time.sleep(2)


def _tree(processes: Processes, pid: int, kind: str) -> Iterator[Measured]:
    yield kind, memory(pid)
    for child in processes.children(pid):
        yield from _tree(processes, child, _kind(child, pid, kind))


def _kind(pid: int, parent: int, kind_of_parent: str) -> str:
    if kind_of_parent in ("slot", "sandbox") or SANDBOX in command_line(pid):
        return "sandbox"
    return "slot" if command_line(pid) == command_line(parent) else "other"


# ----------------------------------------------------------------------------------------- the table


def _summary(processes: list[Measured]) -> dict[str, Any]:
    """Sum up megabytes by kind of process."""
    pss: Counter[str] = Counter()
    private: Counter[str] = Counter()
    for kind, each in processes:
        pss[kind] += each.pss
        private[kind] += each.private
    number = Counter(kind for kind, _ in processes)
    return {
        "processes": len(processes),
        "total_mb": _megabytes(sum(pss.values())),
        **{f"{kind}_mb": _megabytes(pss[kind]) for kind in KINDS},
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
