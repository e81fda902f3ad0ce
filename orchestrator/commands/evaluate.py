"""`minion evaluate`: have tasks judged that have ended."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import typer

from orchestrator.commands.client import ACTOR, connect
from orchestrator.commands.durations import seconds_of
from orchestrator.commands.output import AS_JSON, console, print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(evaluate)


def evaluate(
    agent: str = typer.Option(..., help="The agent whose tasks are judged."),
    evaluator: str = typer.Option(..., help="The agent that judges: its output has a `score` between 0 and 1."),
    since: str = typer.Option(..., help="Tasks of this time until now: 1d, 12h."),
    budget: float = typer.Option(..., help="Dollars for all judging tasks together."),
    version: int | None = typer.Option(None, min=1, help="Only tasks of this version."),
    share: str | None = typer.Option(None, help="Only this share of the tasks: 10%."),
    limit: int = typer.Option(100, min=1, max=10_000, help="Judge at most this many tasks, the newest first."),
    namespace: str | None = typer.Option(None, help="The namespace of the agents."),
    actor: str | None = ACTOR,
    as_json: bool = AS_JSON,
) -> None:
    """Have succeeded tasks of an agent judged by another agent; `minion agents show` has the scores."""
    begin = datetime.now(UTC) - timedelta(seconds=seconds_of(since, "--since"))
    with connect(actor) as client:
        chosen = client.evaluate(
            agent,
            evaluator,
            since=begin,
            dollars=budget,
            version=version,
            share=share,
            limit=limit,
            namespace=namespace,
        )
    if as_json:
        print_json(chosen)
    elif not chosen["tasks"]:
        console.print(f"{agent} has no succeeded tasks of that time that {evaluator} has not judged.")
    else:
        console.print(
            f"{evaluator} judges {chosen['tasks']} tasks, for at most {chosen['dollars_per_task']:.6f} dollars each. "
            f"`minion agents show {agent}` shows the scores of each version."
        )
