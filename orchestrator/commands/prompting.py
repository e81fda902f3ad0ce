"""Lines and texts that a person types, at a terminal or through a pipe."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from minions.errors import MinionsError
from orchestrator.commands.output import fail, interactive, on_a_terminal
from orchestrator.commands.tasks import read_input
from shared.contracts.strict_json import parse
from shared.contracts.visible_text import one_line
from shared.errors import FileFault, InvalidInput

EDITORS = ("VISUAL", "EDITOR")


def ask(prompt: str) -> str | None:
    """Return a line without surrounding blanks; None at the end of the input. A pipe receives no prompt."""
    with suppress(ImportError):
        import readline  # noqa: F401 - `input` then edits lines, and has a history

    try:
        return input(one_line(prompt) if _typed() else "").strip()
    except EOFError:
        return None


def read_commands(prompt: Callable[[], str], do: Callable[[str], None], *, last: Collection[str]) -> None:
    """Read commands until the end of the input, or until one of `last`. A command that fails does not end it.

    Raises:
        typer.Exit: the commands came through a pipe, and one failed: with the exit code of the first that did.
    """
    codes = []
    while (written := ask(prompt())) is not None and written not in last:
        try:
            do(written)
        except MinionsError as error:
            codes.append(fail(error))
    if codes and not _typed():
        raise typer.Exit(codes[0])


def _typed() -> bool:
    """Return whether a person types the lines."""
    return on_a_terminal() and sys.stdin is not None and sys.stdin.isatty()


def json_from(written: str, shown: Any) -> Any:
    """Return the JSON that a person gives in place of another value.

    Args:
        written: JSON, or `@FILE`; empty opens an editor with the other value.

    Raises:
        InvalidInput: it is not JSON; or it is empty, and there is no terminal for an editor.
        FileFault: a file cannot be read, or the editor cannot be started.
    """
    return read_input(written) if written else parse(_edited(shown), what="The edited text")


def _edited(shown: Any) -> bytes:
    import json

    command = next((os.environ[name] for name in EDITORS if os.environ.get(name)), "vi")
    if not interactive():
        raise InvalidInput("There is no terminal for an editor: write the JSON, or @FILE, behind the command.")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "value.json"
        # As ASCII, so that an editor shows no character that a terminal obeys.
        file.write_text(json.dumps(shown, indent=2) + "\n", encoding="ascii")
        try:
            subprocess.run([*shlex.split(command), str(file)], check=True)
            return file.read_bytes()
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            raise FileFault(f"The editor {command!r} failed: {error}. Set EDITOR, or write the JSON.") from None
