"""`minion bulk`: cancel, replay or label all tasks that match a query."""

from __future__ import annotations

from itertools import islice
from typing import Any, Literal

import typer

from orchestrator.commands.client import ACTOR, connect
from orchestrator.commands.output import AS_JSON, console, local_time, print_json, print_table
from orchestrator.commands.tasks import changed_labels

app = typer.Typer(
    help="Act on all tasks that match a query, in the background: cancel, replay, label, list, show, stop.",
    no_args_is_help=True,
)
QUERY = typer.Argument(help="Filters, such as: agent:triage state:failed since:1d")
RATE = typer.Option(20.0, "--rate", min=0.01, max=1000, help="Tasks a second.")
DRY_RUN = typer.Option(False, "--dry-run", help="Only count the tasks, and show the newest.")
ID = typer.Argument(help="The id of the bulk act.", metavar="ID")


def register(commands: typer.Typer) -> None:
    """Add the commands."""
    commands.add_typer(app, name="bulk")


@app.command()
def cancel(
    query: list[str] = QUERY,
    reason: str | None = typer.Option(None, "--reason", help="Why, for the record of the tasks."),
    rate: float = RATE,
    dry_run: bool = DRY_RUN,
    actor: str | None = ACTOR,
    as_json: bool = AS_JSON,
) -> None:
    """Cancel all tasks that match a query and have not ended, and everything below them."""
    _start("cancel", query, {"reason": reason}, rate, actor, dry_run=dry_run, as_json=as_json)


@app.command()
def replay(
    query: list[str] = QUERY,
    pinned: bool = typer.Option(False, "--pinned", help="With the agent versions of the original tasks."),
    new_keys: bool = typer.Option(False, "--new-keys", help="Give the calls new idempotency keys."),
    again: bool = typer.Option(False, "--again", help="Also tasks that already have a replay."),
    rate: float = RATE,
    dry_run: bool = DRY_RUN,
    actor: str | None = ACTOR,
    as_json: bool = AS_JSON,
) -> None:
    """Replay all tasks that match a query and have ended."""
    options = {"pinned": pinned or None, "new_keys": new_keys or None, "again": again or None}
    _start("replay", query, options, rate, actor, dry_run=dry_run, as_json=as_json)


@app.command()
def label(
    query: list[str] = QUERY,
    labels: list[str] = typer.Option(
        ..., "--label", "-l", metavar="NAME=VALUE", help="A label to set, or with NAME= to remove; may be repeated."
    ),
    rate: float = RATE,
    dry_run: bool = DRY_RUN,
    actor: str | None = ACTOR,
    as_json: bool = AS_JSON,
) -> None:
    """Set labels of all tasks that match a query."""
    _start("label", query, {"labels": changed_labels(labels)}, rate, actor, dry_run=dry_run, as_json=as_json)


@app.command("list")
def list_acts(
    state: Literal["running", "stopped", "done"] | None = typer.Option(
        None, "--state", "-s", help="Only in this state."
    ),
    namespace: str | None = typer.Option(None, help="Only of this namespace."),
    limit: int = typer.Option(20, "--limit", "-n", min=1, max=100_000, help="How many, the newest first."),
    as_json: bool = AS_JSON,
) -> None:
    """List bulk acts, the newest first."""
    with connect() as client:
        found = list(islice(client.bulk_acts(state=state, namespace=namespace), limit))
    if as_json:
        print_json(found)
        return
    print_table(
        ("id", "act", "state", "progress", "started", "by", "query"),
        (
            (a["id"], a["act"], a["state"], progress_of(a), local_time(a["created_at"]), a["created_by"], a["query"])
            for a in found
        ),
        empty="No bulk acts.",
    )


@app.command()
def show(bulk_act: str = ID) -> None:
    """Show a bulk act as JSON."""
    with connect() as client:
        print_json(client.bulk_act(bulk_act))


@app.command()
def stop(bulk_act: str = ID, actor: str | None = ACTOR) -> None:
    """Stop a bulk act: no task is acted on any more, and what was done stays."""
    with connect(actor) as client:
        stopped = client.stop_bulk_act(bulk_act)
    console.print(f"{stopped['id']} is {stopped['state']}: {progress_of(stopped)}.")


def progress_of(act: dict[str, Any]) -> str:
    """Return the progress of an act, such as `20 of 100 done, 1 failed`."""
    total = f"{act['matched']}{'+' if act['more'] else ''}"
    others = [f"{act[name]} {name}" for name in ("failed", "skipped") if act[name]]
    return ", ".join([f"{act['done']} of {total} done", *others])


def _start(
    act: Literal["cancel", "replay", "label"],
    query: list[str],
    options: dict[str, Any],
    rate: float,
    actor: str | None,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    with connect(actor) as client:
        started = client.start_bulk_act(act, " ".join(query), rate=rate, dry_run=dry_run, **options)
    if as_json:
        print_json(started)
    elif dry_run:
        _print_dry_run(started)
    else:
        console.print(f"{started['id']} has started: {progress_of(started)}. `minion bulk show` shows its progress.")


def _print_dry_run(planned: dict[str, Any]) -> None:
    states = ", ".join(f"{number} {state}" for state, number in planned["by_state"].items())
    more = " or more" if planned["more"] else ""
    found = "1 task matches" if planned["matched"] == 1 and not more else f"{planned['matched']}{more} tasks match"
    console.print(f"{found}{': ' if states else '.'}{states}")
    print_table(
        ("id", "agent", "state", "created"),
        ((task["id"], task["agent"], task["state"], local_time(task["created_at"])) for task in planned["newest"]),
        empty="Nothing to do.",
    )
