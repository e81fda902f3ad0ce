"""`minion functions`: list, show, put, run, diff, and the lifecycle of versions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from orchestrator.commands.client import connect
from orchestrator.commands.output import AS_JSON, console, print_json, print_table, print_text
from shared.contracts.strict_json import parse
from shared.errors import FileFault, InvalidDefinition
from shared.settings import get_settings

if TYPE_CHECKING:
    from shared.definitions.function_store import FunctionStore

app = typer.Typer(
    help="Manage functions: list, show, put, run, diff, deprecate, quarantine, release.", invoke_without_command=True
)
VERSION = typer.Option(None, "--version", min=1, help="This version instead of the active one.")
REASON = typer.Option(None, "--reason", help="The reason, for the record.")


def register(commands: typer.Typer) -> None:
    """Add the commands."""
    commands.add_typer(app, name="functions")


@app.callback()
def _default(context: typer.Context, as_json: bool = AS_JSON) -> None:
    if context.invoked_subcommand is None:
        list_functions(as_json=as_json)


@app.command("list")
def list_functions(as_json: bool = AS_JSON) -> None:
    """List functions."""
    with connect() as client:
        found = list(client.functions())
    if as_json:
        print_json(found)
        return
    print_table(
        ("function", "version", "status", "sha256", "description"),
        ((f["name"], f["version"], f["status"], f["checksum"][:12], f["description"][:60]) for f in found),
        empty="No functions. `minion functions put FILE` stores one.",
    )


@app.command()
def show(name: str) -> None:
    """Show a function's definition and versions as JSON."""
    with connect() as client:
        print_json(client.function(name))


@app.command()
def put(
    file: Path = typer.Argument(help="A Python file; its name is the function's, unless --name is given."),
    name: str | None = typer.Option(None, help="The function's name."),
    description: str = typer.Option("", help="What it does."),
    input_schema: str | None = typer.Option(None, help="JSON Schema of its arguments."),
    output_schema: str | None = typer.Option(None, help="JSON Schema of its return value."),
) -> None:
    """Store a Python file as a function; a change becomes a new version."""
    try:
        code = file.read_text(encoding="utf-8")
    except OSError as error:
        raise FileFault(f"{file} cannot be read: {error.strerror}. Name a file that can be read.") from None
    except UnicodeDecodeError as error:
        raise InvalidDefinition(f"{file} is not UTF-8 (byte {error.start}): a function must be UTF-8 text.") from None
    schemas = {
        "input_schema": parse(input_schema, what="--input-schema") if input_schema else None,
        "output_schema": parse(output_schema, what="--output-schema") if output_schema else None,
    }
    with _store() as store:
        stored = asyncio.run(store.store_function(name or file.stem, code, description, **schemas))
    console.print(f"{stored.name} version {stored.number}, sha256 {stored.checksum}")


@app.command()
def run(
    name: str,
    arguments: str = typer.Argument("{}", help="The arguments as a JSON object."),
    version: int | None = VERSION,
) -> None:
    """Run a function in this machine's sandbox and print its value as JSON."""
    values = parse(arguments, what="The arguments")
    with _store() as store:
        print_json(asyncio.run(store.execute_function(name, values, version=version)))


@app.command()
def diff(name: str, before: int = typer.Argument(), after: int = typer.Argument()) -> None:
    """Show what changed between two versions of a function."""
    with _store() as store:
        print_text(store.diff(name, before, after))


@app.command()
def events(name: str, as_json: bool = AS_JSON) -> None:
    """List a function's latest security events: denials, limit kills, hash mismatches."""
    with _store() as store:
        found = [
            {"at": e.created_at, "kind": e.kind, "version_id": e.function_version_id, "task_id": e.task_id, **e.detail}
            for e in store.events(name)
        ]
    if as_json:
        print_json(found)
        return
    rows = ((event["at"], event["kind"], event["task_id"], event.get("message")) for event in found)
    print_table(("at", "kind", "task", "message"), rows, empty="No security events.")


@app.command()
def deprecate(name: str, version: int | None = VERSION, reason: str | None = REASON) -> None:
    """Mark a version of a function as one to move away from; it still runs."""
    _change(name, "deprecated", version, reason)


@app.command()
def quarantine(name: str, version: int | None = VERSION, reason: str | None = REASON) -> None:
    """Refuse to run a version of a function, everywhere, within a second."""
    _change(name, "quarantined", version, reason)


@app.command()
def release(name: str, version: int | None = VERSION, reason: str | None = REASON) -> None:
    """Let a quarantined or deprecated version run again; its security events are counted from zero."""
    _change(name, "active", version, reason)


def _change(name: str, status: str, version: int | None, reason: str | None) -> None:
    with _store() as store:
        changed = store.set_status(name, status, version=version, reason=reason)
    console.print(f"{changed.name} version {changed.number} is {changed.status}.")


@contextmanager
def _store() -> Iterator[FunctionStore]:
    """Open the function store on the configured database."""
    # Imported on use: lists go over HTTP and need no database layer.
    from sqlalchemy.orm import Session

    from shared.database.connections import get_engine
    from shared.database.schema import wait_for_database
    from shared.definitions.function_store import FunctionStore

    wait_for_database(get_settings())
    with Session(get_engine()) as session:
        yield FunctionStore(session)
