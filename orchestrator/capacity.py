"""What a load needs: workers, memory, connections, cores; and what saturates first. See docs/capacity.md.

All costs are in `capacity_costs.json`, which `python -m benchmarks.capacity --write` measures. They are linear: a task
costs the same at every rate, which holds as long as nothing is saturated.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COSTS = Path(__file__).with_name("capacity_costs.json")

BUSY = 0.7
"""The share of a core, a slot or a limit that is used. The rest is for bursts, restarts and vacuum."""
PARTS = ("worker", "orchestrator", "postgresql", "redis")
"""Parts of the system that use processor time."""


@dataclass(frozen=True, slots=True)
class Load:
    """A steady load.

    Attributes:
        turns: model calls of one task, each but the last with a tool call; 0 for tasks of one builtin tool.
        model_seconds: duration of a model call.
        tool_seconds: duration of a tool call, during which it holds a slot and waits.
    """

    tasks_per_second: float
    turns: int = 0
    model_seconds: float = 0.0
    tool_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Limit:
    """A resource of which one instance has a limit.

    Attributes:
        of_one: how much one instance can do.
        advice: what to do when the need comes near it.
    """

    resource: str
    need: float
    of_one: float
    unit: str
    advice: str

    @property
    def share(self) -> float:
        """The need in terms of one instance."""
        return self.need / self.of_one


@dataclass(frozen=True, slots=True)
class Plan:
    """What a load needs.

    Attributes:
        model_calls: in flight at the same time.
        cores: by part, at `BUSY`.
        connections: of all processes to PostgreSQL.
        stored_bytes_per_day: rows and indexes of ended tasks, until retention deletes them.
        limits: resources that one instance must provide, the nearest to its limit first.
    """

    load: Load
    model_calls: float
    slots: int
    workers: int
    orchestrators: int
    memory_mb: float
    connections: int
    cores: dict[str, float]
    wal_bytes_per_second: float
    redis_commands_per_second: float
    stored_bytes_per_day: float
    limits: tuple[Limit, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the plan as JSON."""
        names = [name for name in self.__slots__ if name not in ("load", "limits")]
        load = {name: getattr(self.load, name) for name in self.load.__slots__}
        limits = [
            {"resource": limit.resource, "need": limit.need, "of_one": limit.of_one, "unit": limit.unit,
             "share": limit.share, "advice": limit.advice}
            for limit in self.limits
        ]  # fmt: skip
        return {"load": load, **{name: getattr(self, name) for name in names}, "limits": limits}


def read_costs() -> dict[str, Any]:
    """Return the measured costs."""
    costs: dict[str, Any] = json.loads(COSTS.read_text(encoding="utf-8"))
    return costs


def plan(load: Load, costs: dict[str, Any], *, slots_per_worker: int) -> Plan:
    """Return what a load needs."""

    def per_second(name: str, part: str | None = None) -> float:
        task, turn = costs["task"][name], costs["turn"][name]
        if part is not None:
            task, turn = task[part], turn[part]
        return float(load.tasks_per_second * (task + load.turns * turn))

    cpu = {part: per_second("cpu_ms", part) / 1000 for part in PARTS}
    cores = {part: seconds / BUSY for part, seconds in cpu.items()}
    calls = load.tasks_per_second * load.turns * load.model_seconds
    tools = load.tasks_per_second * (max(1, load.turns - 1) if load.tool_seconds else 0) * load.tool_seconds
    memory, connections = costs["memory_mb"], costs["connections"]
    # A slot is busy while its process computes, while a tool waits, and while a model call keeps it.
    beside_slots = costs["model_calls_per_worker"]
    slots = max(1, math.ceil((cpu["worker"] + tools + (0 if beside_slots else calls)) / BUSY))
    # Beside its slots, a worker holds model calls in one process, which uses one core at most.
    turns = load.tasks_per_second * load.turns * costs["turn"]["cpu_ms"]["worker"] / 1000
    lanes = math.ceil(max(calls / beside_slots, turns) / BUSY) if beside_slots else 0
    workers = max(math.ceil(slots / slots_per_worker), lanes)
    orchestrators = max(1, math.ceil(cores["orchestrator"]))
    connected = workers * connections["worker"] + slots * connections["slot"]
    connected += orchestrators * connections["orchestrator"]
    wal = per_second("wal_bytes")
    return Plan(
        load=load,
        model_calls=calls,
        slots=slots,
        workers=workers,
        orchestrators=orchestrators,
        memory_mb=workers * memory["worker"]
        + slots * memory["slot"]
        + calls * memory["model_call"]
        + orchestrators * memory["orchestrator"],
        connections=math.ceil(connected),
        cores=cores,
        wal_bytes_per_second=wal,
        redis_commands_per_second=per_second("redis_commands"),
        stored_bytes_per_day=per_second("stored_bytes") * 86_400,
        limits=_limits(cores, connected, wal, costs["limits"]),
    )


def _limits(cores: dict[str, float], connections: int, wal: float, of_one: dict[str, float]) -> tuple[Limit, ...]:
    limits = (
        Limit(
            "PostgreSQL's processor",
            cores["postgresql"],
            of_one["postgresql_cores"],
            "cores",
            "A larger server first. Then separate systems: split tenants or capabilities between databases. Read "
            "replicas do not help, because the load is writes.",
        ),
        Limit(
            "PostgreSQL's connections",
            connections,
            of_one["postgresql_connections"],
            "connections",
            "Raise max_connections (an idle connection takes about 2 MB), or put PgBouncer in front, with session "
            "pooling. Fewer, fuller slots help more: give agents that wait a separate worker.",
        ),
        Limit(
            "PostgreSQL's log",
            wal / 1e6 / BUSY,
            of_one["wal_megabytes_per_second"],
            "MB/s",
            "Put the write-ahead log on a separate fast disk, raise max_wal_size so that checkpoints are at least 15 "
            "minutes apart, and set wal_compression = lz4.",
        ),
        Limit(
            "Redis",
            cores["redis"],
            of_one["redis_cores"],
            "cores",
            "Redis runs commands in one thread. Use Valkey 8 or later with io-threads, then separate systems.",
        ),
        Limit(
            "the dispatcher",
            cores["orchestrator"],
            of_one["orchestrator_cores"],
            "cores",
            "Start more orchestrators: they share the work. With limits set, their dispatch takes turns: give busy "
            "capabilities a separate system.",
        ),
    )
    return tuple(sorted(limits, key=lambda limit: -limit.share))
