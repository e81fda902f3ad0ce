"""Commands for failed tasks: replay, dead-letters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from typing import Any

import typer
from rich.progress import Progress

from minions import Client, Task, errors
from minions.wire import PAGE
from orchestrator.commands.client import ACTOR, connect
from orchestrator.commands.output import (
    AS_JSON,
    interactive,
    local_time,
    print_json,
    print_table,
    print_text,
    stderr,
    zoned,
)
from orchestrator.commands.task_ids import OPTIONAL_TASKS, remember
from orchestrator.commands.tasks import message_of, read_input, summary
from shared.contracts.visible_text import one_line
from shared.errors import HistoryDiverged
from shared.tasks.states import State


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(replay)
    app.command("dead-letters")(dead_letters)


def replay(
    task_ids: list[str] = OPTIONAL_TASKS,
    failed: bool = typer.Option(False, "--failed", help="All failed tasks that have no replay."),
    state: list[State] = typer.Option(
        [], "--state", "-s", metavar="STATE", help="All tasks in this state; may be repeated."
    ),
    agent: str | None = typer.Option(None, "--agent", "-a", help="Only tasks of this agent."),
    capability: str | None = typer.Option(None, help="Only tasks of this capability."),
    key: str | None = typer.Option(None, help="Only tasks of this tenant."),
    fingerprint: str | None = typer.Option(None, help="Only tasks with this kind of error; see `minion dead-letters`."),
    function: str | None = typer.Option(
        None, metavar="NAME@NUMBER", help="Only tasks that pinned this function version."
    ),
    since: datetime | None = typer.Option(None, help="Only tasks created at this local time or later."),
    until: datetime | None = typer.Option(None, help="Only tasks created before this local time."),
    again: bool = typer.Option(False, "--again", help="Also tasks that already have a replay."),
    pinned: bool | None = typer.Option(
        None, "--pinned/--latest", help="Run the version of the original task, or the active one."
    ),
    from_step: int | None = typer.Option(
        None, min=1, metavar="N", help="Reuse the recorded steps before N, and continue from there."
    ),
    edit_output: str | None = typer.Option(
        None, metavar="FILE", help="With --from-step: keep step N too, with the JSON of this file (- standard input)."
    ),
    cut: bool = typer.Option(
        False,
        "--cut",
        help="With --latest and --from-step: if the active version asks for another step before N, wait for that, and "
        "continue from there.",
    ),
    new_keys: bool = typer.Option(
        False, "--new-keys", help="Give the calls new idempotency keys: external systems treat them as new calls."
    ),
    rate: float = typer.Option(
        10.0, min=0.001, max=100_000, help="With filters: how many of the new tasks start per second."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would be replayed, without replaying anything."),
    actor: str | None = ACTOR,
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print only the new ids, one per line."),
    as_json: bool = AS_JSON,
) -> None:
    """Submit ended tasks again, as new tasks; the old ones stay as they are."""
    filters = {
        "states": state or None, "agent": agent, "capability": capability, "key": key, "function": function,
        "error_fingerprint": fingerprint, "created_after": zoned(since),
        "created_before": zoned(until), "again": again or None,
    }  # fmt: skip
    filtered = failed or any(filters.values())
    if bool(task_ids) == filtered:
        raise typer.BadParameter("give task ids, or --failed or another filter")
    if edit_output is not None and from_step is None:
        raise typer.BadParameter("--edit-output needs --from-step: the step whose output it is")
    if from_step is not None and (len(task_ids or []) != 1 or dry_run):
        raise typer.BadParameter("--from-step is for one task, without --dry-run")
    if cut and (pinned is not False or from_step is None or edit_output is not None):
        raise typer.BadParameter("--cut needs --latest and --from-step, without --edit-output")
    how: dict[str, Any] = {"pinned": pinned, "from_step": from_step, "new_keys": new_keys}
    if edit_output is not None:
        how["edited_output"] = read_input(edit_output if edit_output == "-" else f"@{edit_output}")
    with connect(actor) as client:
        done = (
            _replay_many(client, filters, pinned=bool(pinned), new_keys=new_keys, rate=rate, dry_run=dry_run)
            if filtered
            else _replay_each(client, task_ids, how, dry_run=dry_run, cut=cut)
        )
    if done and done[-1]["replayed_as"]:
        remember(done[-1]["replayed_as"])
    _print_replayed(done, dry_run=dry_run, quiet=quiet, as_json=as_json)


def dead_letters(
    fingerprint: str | None = typer.Argument(None, help="List the tasks of this kind of error instead of the kinds."),
    agent: str | None = typer.Option(None, "--agent", "-a", help="Only tasks of this agent."),
    limit: int = typer.Option(20, "--limit", "-n", min=1, max=100_000, help="With a fingerprint: how many tasks."),
    as_json: bool = AS_JSON,
) -> None:
    """List the kinds of errors of failed tasks without a replay, or the tasks of one kind."""
    if fingerprint is not None:
        _list_dead_letters(fingerprint, agent, limit, as_json=as_json)
        return
    with connect() as client:
        found = sorted(client.dead_letters(agent), key=lambda group: -group["tasks"])
    if as_json:
        print_json(found)
        return
    print_table(
        ("fingerprint", "tasks", "exhausted", "agents", "last", "error"),
        (
            (g["fingerprint"], g["tasks"], g["exhausted"], ", ".join(filter(None, g["agents"])),
             local_time(g["last_at"]), (g["message"] or "")[:100])
            for g in found
        ),
        empty="No dead letters.",
    )  # fmt: skip


def _list_dead_letters(fingerprint: str, agent: str | None, limit: int, *, as_json: bool) -> None:
    with connect() as client:
        matching = client.tasks(
            state="failed", error_fingerprint=fingerprint, unreplayed=True, agent=agent, page=min(limit, PAGE)
        )
        found = list(islice(matching, limit))
    if as_json:
        print_json([summary(task) for task in found])
        return
    print_table(
        ("id", "agent", "attempts", "finished", "error"),
        ((task.id, task.agent, task.attempts, task.finished_at, message_of(task.error)[:100]) for task in found),
        empty=f"No failed task without a replay has the fingerprint {fingerprint}. `minion dead-letters` lists them.",
    )


def _replay_each(
    client: Client, task_ids: list[str], how: dict[str, Any], *, dry_run: bool, cut: bool
) -> list[dict[str, Any]]:
    submit = _replay_cut if cut else Client.replay
    replayed = [(task_id, None if dry_run else submit(client, task_id, **how)) for task_id in task_ids]
    return [{"task_id": old, "replayed_as": new and new.id, "error": None} for old, new in replayed]


def _replay_cut(client: Client, task_id: str, *, from_step: int, **how: Any) -> Task:
    """Replay with the active version from the last step until which it asks for the same, at most from `from_step`.

    Raises:
        Conflict: the task cannot be replayed, for another reason than a step before.
    """
    while True:
        try:
            made = client.replay(task_id, from_step=from_step, **how)
            remember(made.id)
            stderr.print(f"Replay {made.id}: waiting until a worker has continued it at step {from_step}.")
            differs = _first_other_step(client, made, from_step)
            why = "" if differs is None else message_of(client.get(made).error)
        except errors.Conflict as error:
            differs, why = error.detail.get("step"), error.message
            if not isinstance(differs, int) or differs >= from_step:
                raise
        if differs is None:
            return made
        stderr.print(f"Cut at step {differs}: {one_line(why)}")
        from_step = differs


def _first_other_step(client: Client, task: Task, from_step: int) -> int | None:
    """Follow a replay past the steps that it keeps. Return the kept step at which it diverged, or None."""
    for event in client.follow(task):
        if event.type.startswith("step.") and event.data["claim"] > 0 and event.data["step"] >= from_step:
            return None
        error = event.data.get("error") or {}
        if event.type == "task.failed" and error.get("type") == HistoryDiverged.code and error["step"] < from_step:
            return int(error["step"])
    return None


def _replay_many(client: Client, filters: dict[str, Any], **how: Any) -> list[dict[str, Any]]:
    with _progress() as progress:
        return list(client.replay_many(progress=progress, **filters, **how))


@contextmanager
def _progress() -> Iterator[Any]:
    """Show a progress bar if a person is watching."""
    if not interactive():
        yield None
        return
    with Progress(console=stderr, transient=True) as bar:
        task = bar.add_task("Replaying", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_replayed(done: list[dict[str, Any]], *, dry_run: bool, quiet: bool, as_json: bool) -> None:
    if as_json:
        print_json({"replayed": done})
    elif quiet:
        for each in done:
            print_text(each["task_id"] if dry_run else each["replayed_as"] or "")
    elif dry_run:
        print_table(("would replay",), ((each["task_id"],) for each in done), empty="Nothing to replay.")
    else:
        rows = ((each["task_id"], each["replayed_as"], (each["error"] or {}).get("message", "")[:100]) for each in done)
        print_table(("task", "replayed as", "refused"), rows, empty="Nothing to replay.")
    if any(each["error"] for each in done):
        raise typer.Exit(1)
