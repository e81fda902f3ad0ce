"""`minion schedules`: list, show, put, enable, disable, delete, run."""

from __future__ import annotations

from typing import Any, Literal

import typer

from orchestrator.commands.client import connect
from orchestrator.commands.durations import seconds_of
from orchestrator.commands.output import AS_JSON, console, local_time, print_json, print_table
from orchestrator.commands.task_ids import remember
from orchestrator.commands.tasks import QUIET, labels_of, print_submitted, read_input

app = typer.Typer(
    help="Manage schedules: list, show, put, enable, disable, delete, run now.", invoke_without_command=True
)


def register(commands: typer.Typer) -> None:
    """Add the commands."""
    commands.add_typer(app, name="schedules")


@app.callback()
def _default(context: typer.Context, as_json: bool = AS_JSON) -> None:
    if context.invoked_subcommand is None:
        list_schedules(as_json=as_json)


@app.command("list")
def list_schedules(as_json: bool = AS_JSON) -> None:
    """List schedules."""
    with connect() as client:
        found = list(client.schedules())
    if as_json:
        print_json(found)
        return
    print_table(
        ("schedule", "enabled", "runs", "asks", "next", "last", "error"),
        (
            (
                s["name"],
                "yes" if s["enabled"] else "NO",
                _times(s),
                s["request"].get("agent") or s["request"].get("capability"),
                local_time(s["next_at"]),
                local_time(s["last_at"]),
                s["last_error"],
            )
            for s in found
        ),
        empty="No schedules. `minion schedules put` stores one.",
    )


@app.command()
def show(name: str) -> None:
    """Show a schedule as JSON."""
    with connect() as client:
        print_json(client.schedule(name))


@app.command()
def put(
    name: str = typer.Argument(help="The schedule's name."),
    agent: str = typer.Argument(help="The agent's name; - routes by --capability."),
    input: str = typer.Argument("{}", help="The input as JSON; @FILE reads a file, - standard input."),
    cron: str | None = typer.Option(None, help="Minute, hour, day of month, month, day of week: '30 7 * * MON-FRI'."),
    timezone: str | None = typer.Option(None, help="The time zone of --cron, such as Europe/Berlin; UTC by default."),
    every: str | None = typer.Option(
        None, metavar="DURATION", help="The interval, instead of --cron: 90s, 5m, 12h or 7d."
    ),
    missed: Literal["skip", "once", "all"] | None = typer.Option(
        None, help="Which missed runs are made up for; by default once."
    ),
    capability: str | None = typer.Option(None, help="Run on this capability's queue."),
    priority: int | None = typer.Option(None, min=-100, max=100, help="A higher one runs sooner."),
    key: str | None = typer.Option(None, help="The tenant."),
    label: list[str] = typer.Option([], "--label", "-l", metavar="NAME=VALUE", help="A label; may be repeated."),
    as_json: bool = AS_JSON,
) -> None:
    """Store a schedule, replacing one of the same name."""
    if (cron is None) == (every is None):
        raise typer.BadParameter("give either --cron or --every")
    request = {
        "agent": None if agent == "-" else agent,
        "input": read_input(input),
        "capability": capability,
        "priority": priority,
        "key": key,
        "labels": labels_of(label) or None,
    }
    given = {field: value for field, value in request.items() if value is not None or field == "input"}
    interval = None if every is None else seconds_of(every, "--every")
    with connect() as client:
        stored = client.put_schedule(
            name, given, cron=cron, timezone=timezone, interval_seconds=interval, missed=missed
        )
    _report(stored, as_json=as_json)


@app.command()
def enable(name: str, as_json: bool = AS_JSON) -> None:
    """Let a schedule run again, from its next time on."""
    with connect() as client:
        _report(client.change_schedule(name, enabled=True), as_json=as_json)


@app.command()
def disable(name: str, as_json: bool = AS_JSON) -> None:
    """Stop a schedule; missed runs are not made up for."""
    with connect() as client:
        _report(client.change_schedule(name, enabled=False), as_json=as_json)


@app.command()
def delete(name: str) -> None:
    """Delete a schedule; its tasks stay."""
    with connect() as client:
        client.delete_schedule(name)
    console.print(f"{name} is deleted.")


@app.command()
def run(name: str, quiet: bool = QUIET, as_json: bool = AS_JSON) -> None:
    """Submit a schedule's task once more, now."""
    with connect() as client:
        task = client.run_schedule(name)
    remember(task.id)
    print_submitted(task, quiet=quiet, as_json=as_json)


def _report(schedule: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(schedule)
    elif schedule["enabled"]:
        next_at = local_time(schedule["next_at"])
        console.print(f"{schedule['name']} runs {_times(schedule)}, next at {next_at and next_at.astimezone()}.")
    else:
        console.print(f"{schedule['name']} is disabled.")


def _times(schedule: dict[str, Any]) -> str:
    if schedule["cron"] is not None:
        return f"{schedule['cron']} ({schedule['timezone']})"
    return f"every {schedule['interval_seconds']:g} s"
