"""Agents that wait for a model: turns per second, memory of the workers, processor time of a turn by process.

    python -m benchmarks.agents [--agents N] [--turns N] [--seconds S] [--worker "ARGUMENTS"] [--json]

Each agent has an input of 20 kB and calls one tool in each turn but the last. Its model is a local server whose replies
have 20 events and take S seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import Counter

from sqlalchemy import TextClause, text

from benchmarks.environment import Environment
from benchmarks.processes import Processes, tree_pss
from benchmarks.systems.minions import Installation, scalar
from shared.contracts.requests import TaskRequest
from shared.database.connections import get_engine
from shared.tasks.submission import submit_within
from tests.support.processes import Process

HISTORY = "Read the licence of the distribution, and compare it with the list. " * 300
ROUND_SECONDS = 300.0
WORKER = "-m orchestrator.cli worker bench-agents -c 16"
DEFINITIONS = (
    {
        "kind": "tool",
        "name": "echo_number",
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
        "tools": ["echo_number"],
        "system_prompt": "Answer.",
        "config": {"capabilities": ["bench-agents"], "max_turns": 50},
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
    parser.add_argument("--worker", default=WORKER, help="arguments of Python")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with Environment(replies=()) as environment:
        environment.serve_model(["benchmarks.model_server", str(options.seconds), str(options.turns)])
        minions = Installation(environment)
        minions.define(*DEFINITIONS)
        worker = environment.launch([sys.executable, *options.worker.split()])
        work(4)  # warm up
        figures = measure(environment, minions.orchestrator, worker, options.agents, options.turns)
    report(figures, options.agents, options.turns, options.seconds, as_json=options.json)


def measure(
    environment: Environment, orchestrator: Process, worker: Process, agents: int, turns: int
) -> dict[str, float]:
    """Run the agents; return the figures by name."""

    def spent() -> Counter[str]:
        processes = Processes()
        ours = {"worker": processes.tree(worker.pid), "orchestrator": processes.tree(orchestrator.pid)}
        return Counter({**ours, **environment.server_seconds(processes)})  # type: ignore[arg-type]

    before, began = spent(), time.perf_counter()
    watch = Watch(worker.pid, RUNNING)
    watch.start()
    work(agents)
    seconds = time.perf_counter() - began
    used = spent()
    used.subtract(before)
    watch.stop()
    total = agents * turns
    return {
        "turns/s": round(total / seconds, 1),
        "most in flight": watch.counted,
        "worker PSS, MB": round(watch.pss / 1e6),
        **{f"{role}, ms a turn": round(1000 * each / total, 2) for role, each in used.items()},
        "all, ms a turn": round(1000 * sum(used.values()) / total, 2),
    }


def report(figures: dict[str, float], agents: int, turns: int, seconds: float, *, as_json: bool) -> None:
    """Print the figures. Times are milliseconds of processor time for each turn."""
    if as_json:
        print(json.dumps({"agents": agents, "turns": turns, "seconds": seconds, **figures}, indent=2))
        return
    print(f"{agents} agents with {turns} turns of {seconds:g} s")
    for name, figure in figures.items():
        print(f"{name:24} {figure:9}")


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
    """Observes the highest memory of a worker, and the highest result of a statement that counts, twice a second."""

    def __init__(self, worker: int, count: TextClause) -> None:
        super().__init__(daemon=True)
        self.worker = worker
        self.count = count
        self.pss = 0
        self.counted = 0
        self._ended = threading.Event()

    def run(self) -> None:
        """Observe until `stop` is called."""
        while not self._ended.wait(0.5):
            self.pss = max(self.pss, tree_pss(self.worker))
            self.counted = max(self.counted, int(scalar(self.count)))

    def stop(self) -> None:
        """End the observation."""
        self._ended.set()
        self.join()


if __name__ == "__main__":
    main()
