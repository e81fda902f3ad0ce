"""`minion new`: begin an agent, a tool, a function or a project."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer

from orchestrator.commands.output import print_table
from orchestrator.scaffolds import scaffold


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(new)


def new(
    kind: Literal["agent", "tool", "function", "project"] = typer.Argument(help="What to begin."),
    name: str = typer.Argument(help="Its name: lower-case letters, digits, _ and -."),
    python: bool = typer.Option(False, "--python", help="Write the definitions in Python instead of YAML."),
) -> None:
    """Write the files of a new agent, tool, function or project, with a test that passes. Existing files are kept."""
    written = scaffold(kind, name, python=python, folder=Path())
    print_table(("written",), [(file,) for file in written], empty="")
