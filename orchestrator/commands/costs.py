"""Command for costs: what model calls cost, and what they would cost otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import typer

from orchestrator.commands.client import connect
from orchestrator.commands.durations import seconds_of
from orchestrator.commands.output import AS_JSON, console, print_json, print_table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(costs)


def costs(
    by: str = typer.Option(
        "agent",
        help="What to group by, separated by commas: namespace, agent, version, capability, key, model, hour, day; or "
        "tool, alone or with agent.",
    ),
    last: str = typer.Option("24h", help="The time range until now, such as 90m, 12h, 7d."),
    what_if: list[str] = typer.Option(
        [], "--what-if", help="Also what the same tokens would cost: model=NAME, lane=batch. Repeat it for both."
    ),
    agent: str | None = typer.Option(None, help="Only this agent."),
    version: int | None = typer.Option(None, help="Only this version of agents."),
    capability: str | None = typer.Option(None, help="Only this capability."),
    key: str | None = typer.Option(None, help="Only this tenant key."),
    model: str | None = typer.Option(None, help="Only calls of this model."),
    namespace: str | None = typer.Option(None, help="The namespace."),
    as_json: bool = AS_JSON,
) -> None:
    """Show what model calls cost, and what they would cost with another model or in batches."""
    groups = [name.strip() for name in by.split(",") if name.strip()]
    with connect() as client:
        found = client.costs(
            by=groups,
            since=datetime.now(UTC) - timedelta(seconds=seconds_of(last, "--last")),
            what_if=what_if,
            agent=agent,
            version=version,
            capability=capability,
            key=key,
            model=model,
            namespace=namespace,
        )
    if as_json:
        print_json(found)
    else:
        _print(groups, found)


def _print(groups: Sequence[str], found: Mapping[str, Any]) -> None:
    otherwise = ("what if",) if found["what_if"] else ()
    total = {**dict.fromkeys(groups, ""), groups[0]: "total", **found["total"]}
    rows = [*found["items"], total] if len(found["items"]) > 1 else found["items"]
    print_table(
        (*groups, "calls", "tokens in", "cached", "out", "dollars", *otherwise),
        ((*(row[name] for name in groups), *_figures(row, bool(otherwise))) for row in rows),
        empty="Nothing has ended in that time. The latest seconds may not be counted yet.",
    )
    if found["partial"]:
        console.print("Only the latest 10,000 sub-tasks are counted: choose a shorter time with --last.")
    if unpriced := found["total"].get("unpriced_calls"):
        console.print(f"{unpriced} calls of models without a known price are not in the last column.")


def _figures(row: Mapping[str, Any], otherwise: bool) -> tuple[Any, ...]:
    tokens = row["tokens"]
    figures = (row["calls"], tokens["input"], tokens["cache_read"], tokens["output"], f"{row['dollars']:.6f}")
    return (*figures, f"{row['what_if_dollars']:.6f}") if otherwise else figures
