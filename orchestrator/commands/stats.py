"""Command for statistics: what ended work cost, and how long it took."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import typer

from orchestrator.commands.client import connect
from orchestrator.commands.durations import seconds_of
from orchestrator.commands.output import AS_JSON, print_json, print_table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(stats)


def stats(
    by: str = typer.Option(
        "agent",
        help="What to group by, separated by commas: namespace, agent, version, capability, key, model, function, "
        "hour, day.",
    ),
    last: str = typer.Option("24h", help="The time range until now, such as 90m, 12h, 7d."),
    agent: str | None = typer.Option(None, help="Only this agent."),
    version: int | None = typer.Option(None, help="Only this version of agents."),
    capability: str | None = typer.Option(None, help="Only this capability."),
    key: str | None = typer.Option(None, help="Only this tenant key."),
    model: str | None = typer.Option(None, help="Only calls of this model."),
    function: str | None = typer.Option(None, help="Only steps that ran this function."),
    failures: bool = typer.Option(False, "--failures", help="List the most frequent failures instead."),
    namespace: str | None = typer.Option(None, help="The namespace."),
    as_json: bool = AS_JSON,
) -> None:
    """Show counts, times and costs of ended tasks. They outlive the tasks."""
    groups = [name.strip() for name in by.split(",") if name.strip()]
    since = datetime.now(UTC) - timedelta(seconds=seconds_of(last, "--last"))
    with connect() as client:
        found = client.stats(
            by=groups,
            since=since,
            agent=agent,
            version=version,
            capability=capability,
            key=key,
            model=model,
            function=function,
            namespace=namespace,
        )
    if as_json:
        print_json(found)
    elif failures:
        _print_failures(groups, found)
    else:
        _print_items(groups, found)


def _print_items(groups: list[str], found: dict[str, Any]) -> None:
    times = ("run p50", "p95", "p99", "wait p50", "p95", "p99")
    print_table(
        (*groups, found["about"], "failed", *times, "retries", "tokens in", "out", "dollars", "saved", "cache hits"),
        (
            (
                *(item[name] for name in groups),
                item["count"],
                item["outcomes"].get("failed", 0),
                *_times(item["run"]),
                *_times(item["wait"]),
                item["retries"],
                item["tokens"]["input"],
                item["tokens"]["output"],
                f"{item['dollars']:.6f}",
                f"{item['saved_dollars']:.6f}",
                item["cache_hits"],
            )
            for item in found["items"]
        ),
        empty="Nothing has ended in that time. The latest seconds may not be counted yet.",
    )


def _print_failures(groups: list[str], found: dict[str, Any]) -> None:
    print_table(
        (*groups, "tasks", "type", "fingerprint"),
        (
            (*(item[name] for name in groups), each["tasks"], each["type"], each["fingerprint"] or "(others)")
            for item in found["items"]
            for each in item["failures"]
        ),
        empty="No failures in that time.",
    )


def _times(quantiles: dict[str, float] | None) -> list[str]:
    return [f"{quantiles[name]:.3g} s" if quantiles else "" for name in ("p50", "p95", "p99")]
