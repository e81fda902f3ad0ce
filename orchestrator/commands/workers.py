"""Commands for capabilities and workers."""

from __future__ import annotations

import typer

from orchestrator.commands.client import connect
from orchestrator.commands.output import AS_JSON, local_time, print_json, print_table


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (capabilities, workers):
        app.command()(command)


def capabilities(as_json: bool = AS_JSON) -> None:
    """List capabilities: agents that offer them, workers that serve them, tasks that wait."""
    with connect() as client:
        found = client.capabilities()
    if as_json:
        print_json(found)
        return
    print_table(
        ("capability", "served", "agents", "slots", "busy", "pending", "queued", "running"),
        (
            (
                c["name"],
                "yes" if c["served"] else "NO",
                ", ".join(c["agents"]),
                c["slots"],
                c["busy"],
                c["pending"],
                c["queued"],
                c["running"],
            )
            for c in found
        ),
        empty="No capabilities.",
    )


def workers(
    everyone: bool = typer.Option(False, "--all", help="Also workers that have stopped or were lost."),
    as_json: bool = AS_JSON,
) -> None:
    """List the workers that are online, with their heartbeats."""
    with connect() as client:
        found = list(client.workers(None if everyone else "online"))
    if as_json:
        print_json(found)
        return
    print_table(
        ("worker", "status", "capabilities", "slots", "busy", "last seen"),
        (
            (w["name"], w["status"], ", ".join(w["capabilities"]), w["slots"], w["busy"], local_time(w["last_seen"]))
            for w in found
        ),
        empty="No workers." if everyone else "No workers are online; --all lists the others too.",
    )
