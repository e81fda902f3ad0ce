"""Costs of a task and of a model turn, for `minion capacity`, and a comparison of its estimates with steady loads.

    python -m benchmarks.capacity [--agents N] [--tasks N] [--write] [--check RATE:TURNS … [--minutes M]]

A turn is a model call of a local server. Its reply has 20 events, and all but the last call a builtin tool. The cost
of a turn is that of an agent's task, without that of a task of one tool, divided by its turns. The use of idle
processes is subtracted. `--write` replaces `orchestrator/capacity_costs.json`; the limits in it are kept.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import redis
from sqlalchemy import text

from benchmarks import agents as model_agents
from benchmarks.environment import Environment
from benchmarks.machine import describe
from benchmarks.processes import Processes, tree_pss
from benchmarks.systems.minions import CAPABILITY, TOOL, Installation, scalar, submit_to, wait_for_all
from orchestrator.capacity import COSTS, PARTS, Load, plan, read_costs
from shared.contracts.requests import TaskRequest
from shared.database.connections import autocommit, get_engine
from shared.tasks.submission import submit_within
from tests.support.processes import Process
from workers.lane.host import MOST_TASKS

SLOTS = 16
FEW_SLOTS = 2
TURNS = 6
MODEL_SECONDS = 0.5
PATIENCE = 600.0
IDLE_SECONDS = 10.0
SUBMIT_SECONDS = 0.1
"""Interval of a steady load's submissions."""
ORCHESTRATOR_CONNECTIONS = 35
"""At most: see docs/production.md."""

AGENT = "bench-agent"
AGENT_DEFINITIONS = (
    model_agents.DEFINITIONS[0],
    {**model_agents.DEFINITIONS[1], "config": {"capabilities": [CAPABILITY], "max_turns": 50}},
)
CALLS = text("SELECT count(*) FROM steps WHERE kind = 'model_call' AND status = 'started'")
CONNECTIONS = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
COUNTERS = text(
    "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8 AS wal_bytes, "
    "(SELECT sum(xact_commit)::float8 FROM pg_stat_database WHERE datname = current_database()) AS transactions, "
    "(SELECT sum(pg_total_relation_size(oid))::float8 FROM pg_class WHERE relkind = 'r' "
    "AND relnamespace = current_schema()::regnamespace) AS stored_bytes"
)
COUNTED = ("wal_bytes", "transactions", "stored_bytes", "redis_commands")


def main() -> None:
    """Measure, or check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=4000, help="tasks of one tool")
    parser.add_argument("--agents", type=int, default=300, help="tasks of an agent with a model")
    parser.add_argument("--write", action="store_true", help="replace the costs of `minion capacity`")
    parser.add_argument("--check", nargs="+", type=_load, metavar="RATE:TURNS", help="tasks per second, turns of each")
    parser.add_argument("--minutes", type=float, default=1.0, help="duration of each check")
    options = parser.parse_args()
    machine = describe()
    with _system() as system:
        if options.write or not options.check:
            costs = _costs(system, machine, options.tasks, options.agents)
            print(json.dumps(costs, indent=2), flush=True)
        if options.write:
            COSTS.write_text(json.dumps(costs, indent=2) + "\n", encoding="utf-8")
        if options.check:
            system.restart(SLOTS)
            _report(_check(system, load, 60 * options.minutes) for load in options.check)


def _load(given: str) -> Load:
    rate, _, turns = given.partition(":")
    return Load(float(rate), int(turns or 0), MODEL_SECONDS if int(turns or 0) else 0.0)


@dataclass
class Measured:
    """What the tasks of a block used, beyond what the processes use while no task runs."""

    seconds: float
    counts: Counter[str]
    peak_pss: float = 0.0
    peak_calls: int = 0

    def of_each(self, number: int) -> dict[str, Any]:
        """Return the costs of one task, of this many."""
        cpu = {part: round(1000 * self.counts[part] / number, 3) for part in PARTS}
        return {"cpu_ms": cpu, **{name: round(self.counts[name] / number, 1) for name in COUNTED}}


@dataclass
class MeasuredSystem:
    """Minions on private servers, with one worker."""

    environment: Environment
    minions: Installation
    worker: Process
    idle: Counter[str] = field(default_factory=Counter)

    def counters(self) -> Counter[str]:
        """Return the processor time by part, and the counters of the servers."""
        processes = Processes()
        servers = self.environment.server_seconds(processes)
        found: Counter[str] = Counter()
        found["worker"] = processes.tree(self.worker.pid)  # type: ignore[assignment]
        found["orchestrator"] = processes.tree(self.minions.orchestrator.pid)  # type: ignore[assignment]
        found["postgresql"], found["redis"] = servers["PostgreSQL"], servers["Redis"]  # type: ignore[assignment]
        with autocommit(get_engine()).connect() as connection:
            found.update(dict(connection.execute(COUNTERS).mappings().one()))
        with redis.Redis.from_url(self.environment.addresses.redis_url) as client:
            information: dict[str, Any] = client.info("stats")  # type: ignore[assignment]
        found["redis_commands"] = information["total_commands_processed"]
        return found

    def measure(self, work: Callable[[], None]) -> Measured:
        """Do the work, and return what it used."""
        watch = model_agents.Watch(self.worker.pid, CALLS)
        before, began = self.counters(), time.monotonic()
        watch.start()
        work()
        watch.stop()
        seconds = time.monotonic() - began
        time.sleep(1.5)  # the server publishes its statistics once a second
        used = self.counters()
        used.subtract(before)
        for name, rate in self.idle.items():
            used[name] -= rate * (seconds + 1.5)  # type: ignore[assignment]
        return Measured(seconds, used, watch.pss / 1e6, watch.counted)

    def rest(self) -> None:
        """Measure what is used while no task runs."""
        before, began = self.counters(), time.monotonic()
        time.sleep(IDLE_SECONDS)
        after, seconds = self.counters(), time.monotonic() - began
        after.subtract(before)
        self.idle = Counter({name: used / seconds for name, used in after.items()})  # type: ignore[misc]

    def memory_mb(self) -> float:
        """Return the memory of the worker."""
        return tree_pss(self.worker.pid) / 1e6

    def restart(self, slots: int) -> None:
        """Replace the worker."""
        self.worker.stop(timeout=60)
        self.worker = self.minions.start_worker(CAPABILITY, slots)


@contextmanager
def _system() -> Iterator[MeasuredSystem]:
    with Environment(replies=()) as environment:
        environment.serve_model(["benchmarks.model_server", str(MODEL_SECONDS), str(TURNS)])
        minions = Installation(environment)
        minions.define(*AGENT_DEFINITIONS)
        system = MeasuredSystem(environment, minions, minions.start_worker(CAPABILITY, SLOTS))
        _run(TOOL, 200)
        _run(AGENT, SLOTS)
        system.rest()
        yield system


def _run(agent: str, tasks: int) -> None:
    """Submit tasks and wait until all have ended."""
    if agent == TOOL:
        submit_to(TOOL, tasks)
    else:
        requests = [TaskRequest(agent=agent, input={"text": model_agents.HISTORY}) for _ in range(tasks)]
        with get_engine().begin() as connection:
            submit_within(connection, requests, submitted_by="benchmark")
    wait_for_all(PATIENCE)


# ------------------------------------------------------------------------------------------------- costs


def _costs(system: MeasuredSystem, machine: dict[str, Any], tasks: int, agents: int) -> dict[str, Any]:
    """Measure everything that `minion capacity` reads."""
    task = system.measure(lambda: _run(TOOL, tasks)).of_each(tasks)
    with_model = system.measure(lambda: _run(AGENT, agents))
    many, connections = system.memory_mb(), int(scalar(CONNECTIONS))
    system.restart(FEW_SLOTS)
    _run(AGENT, 2 * FEW_SLOTS)
    few, fewer_connections = system.memory_mb(), int(scalar(CONNECTIONS))
    slot = (many - few) / (SLOTS - FEW_SLOTS)
    slot_connections = (connections - fewer_connections) / (SLOTS - FEW_SLOTS)
    system.worker.stop(timeout=60)
    worker_connections = fewer_connections - int(scalar(CONNECTIONS)) - FEW_SLOTS * slot_connections
    return {
        "measured": {
            "command": "python -m benchmarks.capacity --write",
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{machine['processors']} cores, {machine['processor']}",
            "load_before": machine["load_before"],
        },
        "task": task,
        "turn": _difference(with_model.of_each(agents), task, TURNS),
        "memory_mb": {
            "orchestrator": round(tree_pss(system.minions.orchestrator.pid) / 1e6, 1),
            "worker": round(few - FEW_SLOTS * slot, 1),
            "slot": round(slot, 1),
            "model_call": round(max(0.0, with_model.peak_pss - many) / max(1, with_model.peak_calls), 2),
        },
        # 0: each model call keeps a slot.
        "model_calls_per_worker": MOST_TASKS if with_model.peak_calls > SLOTS else 0,
        "connections": {
            "orchestrator": ORCHESTRATOR_CONNECTIONS,
            "worker": max(1, round(worker_connections)),
            "slot": round(slot_connections, 2),
        },
        "limits": read_costs()["limits"],
    }


def _difference(more: dict[str, Any], less: dict[str, Any], parts: int) -> dict[str, Any]:
    """Return what each of these parts adds."""
    return {
        name: _difference(more[name], less[name], parts)
        if isinstance(more[name], dict)
        else round(max(0.0, more[name] - less[name]) / parts, 3)
        for name in more
    }


# ------------------------------------------------------------------------------------------------- check


def _check(system: MeasuredSystem, load: Load, seconds: float) -> tuple[Load, dict[str, tuple[float, float]]]:
    """Return each estimate for a steady load, and what was measured."""
    agent = AGENT if load.turns else TOOL
    if load.turns not in (0, TURNS):
        raise SystemExit(f"--check: the model of this benchmark makes {TURNS} turns, or 0 without a model.")
    measured = system.measure(lambda: _submit_steadily(agent, load.tasks_per_second, seconds))
    expected = plan(load, read_costs(), slots_per_worker=SLOTS)
    rates = {name: used / measured.seconds for name, used in measured.counts.items()}
    tasks_per_second = load.tasks_per_second * seconds / measured.seconds
    scale = tasks_per_second / load.tasks_per_second  # the last tasks end after the last submission
    cores = {f"cores, {part}": (expected.cores[part] * 0.7 * scale, rates[part]) for part in PARTS}
    return load, {
        **cores,
        "log, kB/s": (expected.wal_bytes_per_second * scale / 1000, rates["wal_bytes"] / 1000),
        "Redis commands/s": (expected.redis_commands_per_second * scale, rates["redis_commands"]),
        "model calls": (expected.model_calls, float(measured.peak_calls)),
    }


def _submit_steadily(agent: str, rate: float, seconds: float) -> None:
    value = {"text": model_agents.HISTORY} if agent == AGENT else {"value": 1}
    began, submitted = time.monotonic(), 0
    while (passed := time.monotonic() - began) < seconds:
        if due := int(rate * passed) - submitted:
            with get_engine().begin() as connection:
                submit_within(connection, [TaskRequest(agent=agent, input=value)] * due, submitted_by="benchmark")
            submitted += due
        time.sleep(SUBMIT_SECONDS)
    wait_for_all(PATIENCE)


def _report(checks: Iterator[tuple[Load, dict[str, tuple[float, float]]]]) -> None:
    for load, figures in checks:
        print(f"{load.tasks_per_second:g} tasks/s of {load.turns} turns")
        for name, (expected, measured) in figures.items():
            ratio = f"{expected / measured:8.2f}" if measured else "        "
            print(f"  {name:24} estimate {expected:10.3f}  measured {measured:10.3f}  ratio {ratio}", flush=True)


if __name__ == "__main__":
    main()
