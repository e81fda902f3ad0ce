"""`minion memory`: what models remember."""

from __future__ import annotations

import typer

from orchestrator.commands.client import ACTOR, connect
from orchestrator.commands.output import AS_JSON, console, local_time, print_json, print_table, print_text
from shared.contracts.visible_text import one_line

app = typer.Typer(help="Manage what models remember: list, show, delete.", invoke_without_command=True)
STORE = typer.Argument(metavar="STORE", help="The store's id.")


def register(commands: typer.Typer) -> None:
    """Add the commands."""
    commands.add_typer(app, name="memory")


@app.callback()
def _default(context: typer.Context, as_json: bool = AS_JSON) -> None:
    if context.invoked_subcommand is None:
        list_stores(tool=None, owner=None, namespace=None, as_json=as_json)


@app.command("list")
def list_stores(
    tool: str | None = typer.Option(None, help="Only those of this memory tool."),
    owner: str | None = typer.Option(None, help="Only that of this conversation, tenant key or agent."),
    namespace: str | None = typer.Option(None, help="Only those of this namespace."),
    as_json: bool = AS_JSON,
) -> None:
    """List the stores of memory."""
    with connect() as client:
        found = list(client.memory_stores(namespace=namespace, tool=tool, owner=owner))
    if as_json:
        print_json(found)
        return
    heads = ("id", "namespace", "tool", "per", "owner", "tenant key", "files", "bytes", "changes", "used")
    names = ("id", "namespace", "tool", "per", "owner", "key", "files", "bytes", "changes")
    rows = ((*(each[name] for name in names), local_time(each["used_at"])) for each in found)
    print_table(heads, rows, empty="No model has stored anything.")


@app.command()
def show(
    store: str = STORE,
    path: str | None = typer.Argument(None, metavar="[PATH]", help="A file: /memories/notes.md."),
    change: int | None = typer.Option(None, "--change", help="The file as this change left it."),
    as_json: bool = AS_JSON,
) -> None:
    """Show the files and the changes of a store, or the text of a file."""
    with connect() as client:
        if path is not None:
            content = client.memory_file(store, path, change=change)
            if as_json:
                print_json({"path": path, "content": content})
            else:
                print_text("(deleted)" if content is None else content)
            return
        found = client.memory_store(store)
    if as_json:
        print_json(found)
        return
    files = ((one_line(file["path"]), file["bytes"], file["number"], local_time(file["at"])) for file in found["files"])
    print_table(("file", "bytes", "change", "at"), files, empty="No files.")
    rows = (
        (
            change["number"],
            change["command"],
            one_line(change["path"]),
            change["new_path"] and one_line(change["new_path"]),
            change["made_by"],
            change["task_id"],
            change["step"],
            local_time(change["at"]),
        )
        for change in found["history"]
    )
    print_table(("change", "command", "path", "to", "by", "task", "step", "at"), rows, empty="No changes.")


@app.command()
def delete(
    store: str = STORE,
    path: str | None = typer.Argument(None, metavar="[PATH]", help="Only this file, or directory."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask for confirmation."),
    actor: str | None = ACTOR,
) -> None:
    """Delete a store with all versions of its files, or one file of it."""
    if path is None and not yes:
        typer.confirm(f"Delete the store {store} with all versions? This cannot be undone.", abort=True, err=True)
    with connect(actor) as client:
        if path is None:
            client.delete_memory(store)
            console.print("The store is deleted.")
            return
        deleted = client.delete_memory_file(store, path)
    console.print(
        f"{len(deleted)} files are deleted. `minion memory show {store} PATH --change N` shows earlier versions."
    )
