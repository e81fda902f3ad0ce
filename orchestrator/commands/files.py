"""`minion files`: images, PDF and texts that tasks refer to."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from orchestrator.commands.client import ACTOR, connect
from orchestrator.commands.output import AS_JSON, console, print_json, print_table

app = typer.Typer(help="Manage the files that tasks refer to: put, list, get, delete.", no_args_is_help=True)
ID = typer.Argument(metavar="FILE", help="The file's id: file_…")
NAMESPACE = typer.Option(None, help="The namespace of the file.")


def register(commands: typer.Typer) -> None:
    """Add the commands."""
    commands.add_typer(app, name="files")


@app.command()
def put(
    path: Path = typer.Argument(help="An image (JPEG, PNG, GIF, WebP), a PDF or a text; `-` is standard input."),
    name: str | None = typer.Option(None, help="Shown to people and models; by default that of the path."),
    media_type: str | None = typer.Option(None, "--type", help="The media type; by default it is recognised."),
    namespace: str | None = NAMESPACE,
    actor: str | None = ACTOR,
    as_json: bool = AS_JSON,
) -> None:
    """Upload a file and print its id. The same content is the same file."""
    content = sys.stdin.buffer.read() if str(path) == "-" else path
    with connect(actor) as client:
        stored = client.upload(content, name=name, media_type=media_type, namespace=namespace)
    if as_json:
        print_json(stored)
    else:
        console.print(stored["id"], soft_wrap=True)


@app.command("list")
def list_files(namespace: str | None = NAMESPACE, as_json: bool = AS_JSON) -> None:
    """List the files, the newest first."""
    with connect() as client:
        found = list(client.files(namespace=namespace))
    if as_json:
        print_json(found)
        return
    rows = ((each["id"], each["name"], each["media_type"], f"{each['bytes']:,}", each["uploaded_at"]) for each in found)
    print_table(("file", "name", "type", "bytes", "uploaded"), rows, empty="No files.")


@app.command()
def get(
    file: str = ID,
    output: Path | None = typer.Option(None, "--output", "-o", help="Where to write it; by default standard output."),
    namespace: str | None = NAMESPACE,
) -> None:
    """Write the content of a file."""
    with connect() as client:
        content = client.download(file, namespace=namespace)
    if output is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    else:
        output.write_bytes(content)


@app.command()
def delete(file: str = ID, namespace: str | None = NAMESPACE, actor: str | None = ACTOR) -> None:
    """Delete a file that no task, conversation or schedule refers to."""
    with connect(actor) as client:
        client.delete_file(file, namespace=namespace)
    console.print(f"The file {file} is deleted.", soft_wrap=True)
