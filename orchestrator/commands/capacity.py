"""`minion capacity`: what a load needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from orchestrator.commands.output import AS_JSON, console, print_json, print_table

if TYPE_CHECKING:
    from orchestrator.capacity import Plan

RATES = (100.0, 1000.0, 10_000.0)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(capacity)


def capacity(
    tasks_per_second: float = typer.Option(
        ..., "--tasks-per-second", min=0.001, max=1e6, help="Submitted, on average."
    ),
    turns: int = typer.Option(0, "--turns", min=0, max=1000, help="Model calls of a task; 0: it has no model."),
    model_seconds: float = typer.Option(8.0, "--model-seconds", min=0, max=86_400, help="Duration of a model call."),
    tool_seconds: float = typer.Option(0.0, "--tool-seconds", min=0, max=86_400, help="Duration of a tool call."),
    slots: int = typer.Option(16, "--slots", min=1, max=10_000, help="Slots of each worker."),
    as_json: bool = AS_JSON,
) -> None:
    """Estimate the workers, memory, connections and cores that a load needs, and what saturates first."""
    from dataclasses import replace

    from orchestrator.capacity import Load, plan, read_costs

    costs = read_costs()
    load = Load(tasks_per_second, turns, model_seconds if turns else 0.0, tool_seconds)
    needed = plan(load, costs, slots_per_worker=slots)
    others = [plan(replace(load, tasks_per_second=rate), costs, slots_per_worker=slots) for rate in RATES]
    if as_json:
        print_json({**needed.as_json(), "saturates_first": [_saturation(other) for other in others]})
        return
    print_table(("for this load", "needed"), _rows(needed), empty="")
    first = needed.limits[0]
    console.print(f"\nNearest to its limit: {first.resource}, {first.share:.0%} of {first.of_one:g} {first.unit}.")
    console.print(first.advice)
    console.print("\nOther rates of the same tasks:")
    head = ("tasks/s", "saturates first", "of one", "workers", "memory, GB", "PostgreSQL cores")
    rows = (
        (f"{other.load.tasks_per_second:g}", other.limits[0].resource, f"{other.limits[0].share:.0%}", other.workers,
         f"{other.memory_mb / 1000:,.1f}", f"{other.cores['postgresql']:.1f}")
        for other in others
    )  # fmt: skip
    print_table(head, rows, empty="")
    measured = costs["measured"]
    console.print(
        f"\nCosts: {measured['command']}, {measured['date']}, {measured['machine']}, load {measured['load_before']} "
        "before the run. Estimates: measure your own load before you buy."
    )


def _saturation(needed: Plan) -> dict[str, Any]:
    first = needed.limits[0]
    return {
        "tasks_per_second": needed.load.tasks_per_second,
        "resource": first.resource,
        "share": first.share,
        "advice": first.advice,
    }


def _rows(needed: Plan) -> list[tuple[str, str]]:
    return [
        ("model calls in flight", f"{needed.model_calls:,.0f}"),
        ("slots", f"{needed.slots:,}"),
        ("workers", f"{needed.workers:,}"),
        ("orchestrators", f"{needed.orchestrators:,}"),
        ("memory of workers and orchestrators", f"{needed.memory_mb / 1000:,.1f} GB"),
        ("cores of workers", f"{needed.cores['worker']:,.1f}"),
        ("cores of orchestrators", f"{needed.cores['orchestrator']:,.1f}"),
        ("cores of PostgreSQL", f"{needed.cores['postgresql']:,.1f}"),
        ("cores of Redis", f"{needed.cores['redis']:,.1f}"),
        ("connections to PostgreSQL", f"{needed.connections:,}"),
        ("write-ahead log", f"{needed.wal_bytes_per_second / 1e6:,.2f} MB/s"),
        ("Redis commands", f"{needed.redis_commands_per_second:,.0f}/s"),
        ("stored tasks", f"{needed.stored_bytes_per_day / 1e9:,.1f} GB/day"),
    ]
