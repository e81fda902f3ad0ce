"""Commands for people whom a task waits for: approve, reject, answer."""

from __future__ import annotations

from typing import Any

import typer

from orchestrator.commands.client import connect
from orchestrator.commands.output import AS_JSON, console, print_json
from orchestrator.commands.task_ids import TASK
from orchestrator.commands.tasks import plain, read_input

STEP = typer.Option(None, "--step", min=1, help="The step's number; by default the first that waits.")
REASON = typer.Option(None, "--reason", help="Why, for the record.")


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (approve, reject, answer):
        app.command()(command)


def approve(
    task_id: str = TASK,
    edit: str | None = typer.Option(None, "--edit", help="Other arguments than proposed, as JSON."),
    step: int | None = STEP,
    reason: str | None = REASON,
    as_json: bool = AS_JSON,
) -> None:
    """Approve the call that a task proposes; `minion why TASK` shows it."""
    _decide(task_id, "approve", None if edit is None else read_input(edit), reason, step, as_json)


def reject(task_id: str = TASK, step: int | None = STEP, reason: str | None = REASON, as_json: bool = AS_JSON) -> None:
    """Reject the call that a task proposes; a model receives the reason and may try something else."""
    _decide(task_id, "reject", None, reason, step, as_json)


def answer(
    task_id: str = TASK,
    result: str | None = typer.Option(None, "--result", help="It happened, and this JSON is what it returned."),
    again: bool = typer.Option(False, "--again", help="It did not happen: do it now."),
    fail: bool = typer.Option(False, "--fail", help="It did not happen, and shall not."),
    step: int | None = STEP,
    reason: str | None = REASON,
    as_json: bool = AS_JSON,
) -> None:
    """Say what became of an unsafe step that was interrupted."""
    verdicts = [name for name, said in (("result", result is not None), ("again", again), ("fail", fail)) if said]
    if len(verdicts) != 1:
        raise typer.BadParameter("give one of --result JSON, --again and --fail")
    _decide(task_id, verdicts[0], None if result is None else read_input(result), reason, step, as_json)


def _decide(task_id: str, verdict: str, value: Any, reason: str | None, step: int | None, as_json: bool) -> None:
    with connect() as client:
        task = client.decide(task_id, verdict, value, reason, step)
    if as_json:
        print_json(plain(task))
    else:
        console.print(f"{task.id} {task.state}")
