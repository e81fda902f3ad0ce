"""`minion functions`: list, show, run, put."""

from __future__ import annotations

import asyncio
from pathlib import Path

import typer

from orchestrator.commands.client import connect
from orchestrator.commands.output import AS_JSON, console, print_json, print_table
from shared.errors import InvalidDefinition
from shared.json_values import parse
from shared.settings import get_settings

app = typer.Typer(help="Functions: list, show, put, run.", invoke_without_command=True)


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
    file: Path = typer.Argument(help="A Python file; the function has its name, or --name."),
    name: str | None = typer.Option(None, help="The function's name."),
    description: str = typer.Option("", help="What it does."),
    input_schema: str | None = typer.Option(None, help="JSON Schema of its arguments."),
    output_schema: str | None = typer.Option(None, help="JSON Schema of its value."),
) -> None:
    """Store a Python file as a function; a new version if something changed."""
    from sqlalchemy.orm import Session

    from shared.database import get_engine, wait_for_database
    from shared.function_store import FunctionStore

    try:
        code = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidDefinition(f"{file} cannot be read: {error}.") from None
    schemas = {
        "input_schema": parse(input_schema, what="--input-schema") if input_schema else None,
        "output_schema": parse(output_schema, what="--output-schema") if output_schema else None,
    }
    wait_for_database(get_settings())
    with Session(get_engine()) as session:
        stored = asyncio.run(FunctionStore(session).store_function(name or file.stem, code, description, **schemas))
    console.print(f"{stored.name} version {stored.number}, sha256 {stored.checksum}")


@app.command()
def run(
    name: str,
    arguments: str = typer.Argument("{}", help="The arguments as a JSON object."),
    version: int | None = typer.Option(None, help="This version instead of the active one."),
) -> None:
    """Run a function in this machine's sandbox and print its value as JSON."""
    from sqlalchemy.orm import Session

    from shared.database import get_engine, wait_for_database
    from shared.function_store import FunctionStore

    values = parse(arguments, what="The arguments")
    wait_for_database(get_settings())
    with Session(get_engine()) as session:
        print_json(asyncio.run(FunctionStore(session).execute_function(name, values, version=version)))
