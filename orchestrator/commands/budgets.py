"""The command about budgets."""

from __future__ import annotations

import typer

from minions import Task
from orchestrator.commands.client import connect
from orchestrator.commands.output import AS_JSON, console, print_json, print_table
from orchestrator.commands.task_ids import TASK


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(budget)


def budget(
    task_id: str = TASK,
    add_tokens: int | None = typer.Option(None, min=1, help="Tokens to add to its limit."),
    add_dollars: float | None = typer.Option(None, min=0.000001, help="Dollars to add to its limit."),
    add_steps: int | None = typer.Option(None, min=1, help="Steps to add to its limit."),
    add_seconds: float | None = typer.Option(None, min=0.000001, help="Seconds to add to its limit."),
    stop: bool = typer.Option(False, "--stop", help="Fail the tasks that wait for it or need more of it."),
    as_json: bool = AS_JSON,
) -> None:
    """Show a task's budget, or raise or stop the one that it waits for."""
    asked = (add_tokens, add_dollars, add_steps, add_seconds)
    with connect() as client:
        if stop or any(value is not None for value in asked):
            task = client.change_budget(
                task_id,
                add_tokens=add_tokens,
                add_dollars=add_dollars,
                add_steps=add_steps,
                add_seconds=add_seconds,
                stop=stop,
            )
        else:
            task = client.get(task_id)
    if as_json:
        print_json({"task_id": task.id, "budget": task.budget})
    else:
        _print(task)


def _print(task: Task) -> None:
    if task.budget is None:
        console.print(f"{task.id} does not have its own budget.")
        return
    console.print(f"{task.id} {task.state}; on breach: {task.budget['on_breach']}")
    limits = [(what, task.budget[what]) for what in ("tokens", "dollars", "steps", "seconds")]
    print_table(
        ("budget", "limit", "spent", "reserved"),
        ((what, each["limit"], each["spent"], each.get("reserved")) for what, each in limits),
        empty="",
    )
