"""The estimates of `minion capacity`, and the command."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.capacity import BUSY, PARTS, Load, plan, read_costs
from orchestrator.cli import app

COSTS: dict[str, Any] = {
    "task": {
        "cpu_ms": dict(zip(PARTS, (4, 1, 2, 0.5), strict=True)),
        "wal_bytes": 5000,
        "transactions": 3,
        "redis_commands": 10,
        "stored_bytes": 4000,
    },
    "turn": {
        "cpu_ms": dict(zip(PARTS, (6, 0, 1, 0.1), strict=True)),
        "wal_bytes": 2000,
        "transactions": 2,
        "redis_commands": 2,
        "stored_bytes": 1000,
    },
    "memory_mb": {"orchestrator": 150, "worker": 200, "slot": 50, "model_call": 0},
    "model_calls_per_worker": 0,
    "connections": {"orchestrator": 31, "worker": 1, "slot": 1},
    "limits": {
        "postgresql_cores": 32,
        "postgresql_connections": 500,
        "wal_megabytes_per_second": 100,
        "redis_cores": 1,
        "orchestrator_cores": 1,
    },
}


def test_tasks_without_a_model_need_processor_time() -> None:
    needed = plan(Load(100), COSTS, slots_per_worker=4)
    assert (needed.slots, needed.workers, needed.model_calls) == (1, 1, 0)
    assert needed.cores["postgresql"] == pytest.approx(0.2 / BUSY)
    assert (needed.wal_bytes_per_second, needed.redis_commands_per_second) == (500_000, 1000)
    assert needed.stored_bytes_per_day == 100 * 4000 * 86_400
    assert needed.connections == 31 + 1 + 1


def test_model_calls_keep_slots() -> None:
    needed = plan(Load(10, turns=5, model_seconds=2), COSTS, slots_per_worker=16)
    assert needed.model_calls == 100
    assert needed.slots == 144  # 100 calls and 0.34 s of processor time a second, at 70 %
    assert needed.workers == 9
    assert needed.memory_mb == 9 * 200 + 144 * 50 + 150


def test_worker_may_hold_model_calls_beside_its_slots() -> None:
    many = {**COSTS, "model_calls_per_worker": 50, "memory_mb": {**COSTS["memory_mb"], "model_call": 1}}
    needed = plan(Load(10, turns=5, model_seconds=2), many, slots_per_worker=16)
    assert (needed.slots, needed.workers) == (1, 3)
    assert needed.memory_mb == 3 * 200 + 50 + 100 + 150


def test_model_turns_of_a_worker_use_one_core_beside_its_slots() -> None:
    many = {**COSTS, "model_calls_per_worker": 1000}
    needed = plan(Load(1000, turns=5, model_seconds=0.01), many, slots_per_worker=16)
    assert (needed.slots, needed.workers) == (49, 43)  # 30 s of processor time a second for turns, at 70 %


def test_waiting_tools_keep_slots() -> None:
    assert plan(Load(10, tool_seconds=7), COSTS, slots_per_worker=16).slots == 101


def test_nearest_limit_comes_first() -> None:
    few = plan(Load(100), COSTS, slots_per_worker=16)
    assert few.limits[0].resource == "the dispatcher"
    waiting = plan(Load(100, turns=5, model_seconds=10), COSTS, slots_per_worker=16)
    assert waiting.limits[0].resource == "PostgreSQL's connections"
    assert waiting.limits[0].share > 1


def test_stored_costs_are_complete() -> None:
    costs = read_costs()
    assert costs["measured"]["command"] == "python -m benchmarks.capacity --write"
    assert plan(Load(200, 6, 8), costs, slots_per_worker=16).workers > 0


# ------------------------------------------------------------------------------------------------- the command


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["capacity", *arguments])


def test_command_prints_what_is_needed() -> None:
    result = run("--tasks-per-second", "200", "--turns", "6", "--model-seconds", "8")
    assert result.exit_code == 0
    for text in ("9,600", "cores of PostgreSQL", "Nearest to its limit", "10000"):
        assert text in result.output


def test_command_prints_json() -> None:
    answer = json.loads(run("--tasks-per-second", "50", "--json").output)
    assert answer["load"] == {"tasks_per_second": 50, "turns": 0, "model_seconds": 0, "tool_seconds": 0}
    assert [other["tasks_per_second"] for other in answer["saturates_first"]] == [100, 1000, 10_000]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--tasks-per-second", "0"],
        ["--tasks-per-second", "-1"],
        ["--tasks-per-second", "nan"],
        ["--tasks-per-second", "inf"],
        ["--tasks-per-second", "many"],
        ["--tasks-per-second", "1", "--turns", "-1"],
        ["--tasks-per-second", "1", "--turns", "1.5"],
        ["--tasks-per-second", "1", "--turns", "1", "--model-seconds", "nan"],
        ["--tasks-per-second", "1", "--slots", "0"],
    ],
    ids=" ".join,
)
def test_other_numbers_are_wrong_usage(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2
