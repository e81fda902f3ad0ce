"""`minion prune`: delete tasks that are older than their retention, now."""

from __future__ import annotations

import typer

from orchestrator.commands.output import AS_JSON, console, print_json, print_table
from shared.errors import FileFault
from shared.settings import get_settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(prune)


def prune(
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would be deleted, without deleting anything."),
    as_json: bool = AS_JSON,
) -> None:
    """Delete tasks that are older than the retention of their state, as the orchestrator does by itself."""
    # Imported on use: other commands start faster without the database layer.
    from orchestrator.retention.audit import prune_audit
    from orchestrator.retention.memories import prune_memories
    from orchestrator.retention.retention import prune as batches
    from orchestrator.retention.retention import retentions
    from shared.access.actors import local_actor
    from shared.database.connections import get_engine
    from shared.database.schema import wait_for_database

    settings = get_settings()
    wait_for_database(settings)
    counts = {str(state): {"trees": 0, "tasks": 0} for state in retentions(settings)}
    try:
        for batch in batches(get_engine(), settings, dry_run=dry_run, actor=local_actor()):
            counts[batch.state]["trees"] += batch.trees
            counts[batch.state]["tasks"] += batch.tasks
        audit_rows = 0 if dry_run else prune_audit(get_engine(), settings)
        memories = 0 if dry_run else prune_memories(get_engine(), settings)
    except OSError as error:
        raise FileFault(
            f"The export in {settings.retention_export} cannot be written: {error}. Tasks that are not exported are "
            "not deleted: make room there, and prune again."
        ) from None
    if as_json:
        print_json({"dry_run": dry_run, "deleted": counts, "audit_rows": audit_rows, "memories": memories})
        return
    rows = ((state, count["trees"], count["tasks"]) for state, count in counts.items())
    print_table(("ended as", "trees", "tasks"), rows, empty="Nothing is deleted: no retention is set.")
    if audit_rows:
        console.print(f"{audit_rows} rows of the audit log are deleted.")
    if memories:
        console.print(f"{memories} stores of memory are deleted.")
    if dry_run:
        console.print("Nothing was deleted (--dry-run).")
