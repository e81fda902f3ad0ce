"""`minion docs`: documentation of a user's own agents."""

from __future__ import annotations

from pathlib import Path

import typer

from orchestrator.commands.client import connect
from orchestrator.commands.output import console

app = typer.Typer(help="Build documentation of your agents, tools, functions and schedules.", no_args_is_help=True)


def register(commands: typer.Typer) -> None:
    """Add the commands."""
    commands.add_typer(app, name="docs")


@app.callback()
def _group() -> None:
    pass


@app.command()
def build(
    path: Path | None = typer.Argument(
        None, help="A file or folder of definitions; by default the active ones of the installation, from the API."
    ),
    out: Path = typer.Option(Path("site"), "--out", "-o", help="The folder for the pages: new, empty or built before."),
    title: str = typer.Option("Minions", help="The title of the site."),
    namespace: str | None = typer.Option(None, help="The namespace, without PATH."),
) -> None:
    """Write static pages about agents, tools, functions and schedules."""
    # Imported on use: templates and graphs are needed by this command alone.
    from orchestrator.catalogue import entries, site

    if path is not None and namespace is not None:
        raise typer.BadParameter("files have no namespace: give either PATH or --namespace")
    if path is not None:
        catalogue = entries.from_files(path)
    else:
        with connect() as client:
            catalogue = entries.from_api(client, namespace)
    written = site.build(catalogue, out, title)
    console.print(f"Wrote {len(written)} pages. Open {out / 'index.html'} in a browser.")
