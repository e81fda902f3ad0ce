"""`minion erase`: delete the contents of a tenant or a conversation."""

from __future__ import annotations

import typer

from orchestrator.commands.client import ACTOR, connect
from orchestrator.commands.output import AS_JSON, console, print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(erase)


def erase(
    tenant: str | None = typer.Option(None, metavar="KEY", help="Erase the tasks with this tenant key."),
    conversation: str | None = typer.Option(None, metavar="ID", help="Erase the tasks of this conversation."),
    namespace: str | None = typer.Option(None, help="The namespace of the tasks."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would be deleted, without deleting anything."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask for confirmation."),
    actor: str | None = ACTOR,
    as_json: bool = AS_JSON,
) -> None:
    """Delete all ended tasks of a tenant or a conversation: inputs, outputs, steps, messages, results, memory."""
    if (tenant is None) == (conversation is None):
        raise typer.BadParameter("give either --tenant or --conversation")
    what = f"tenant {tenant}" if conversation is None else f"conversation {conversation}"
    if not (yes or dry_run):
        typer.confirm(f"Delete all ended tasks of the {what}? This cannot be undone.", abort=True, err=True)
    with connect(actor) as client:
        erased = client.erase(tenant=tenant, conversation_id=conversation, namespace=namespace, dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, **erased})
        return
    verb = "would be" if dry_run else "are"
    console.print(f"{erased['tasks']} tasks ({erased['trees']} with what is below them) {verb} deleted.")
    if memories := erased["memories"]:
        console.print(f"{memories} stores of memory {verb} deleted.")
    if left := erased["left"]:
        console.print(
            f"{len(left)} tasks have not ended and are left, such as {left[0]}. Cancel them (`minion cancel TASK`) "
            "and erase again."
        )
    if schedules := erased["schedules"]:
        console.print(f"These schedules still submit such tasks: {', '.join(schedules)}.")
