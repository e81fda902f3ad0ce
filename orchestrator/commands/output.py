"""What commands print: tables for people, JSON for programs, one line for an error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from minions.errors import MinionsError
from shared import errors
from shared.errors import InvalidInput, MinionError

STATE_STYLES = {
    "succeeded": "green",
    "failed": "red",
    "expired": "red",
    "cancelled": "yellow",
    "running": "cyan",
    "waiting": "magenta",
}
IDS = frozenset({"id", "task", "replayed as", "would replay"})
AS_JSON = typer.Option(False, "--json", help="Print JSON instead of a table.")


def _on_a_terminal() -> bool:
    # There is none where it is closed (`minion tasks >&-`).
    return sys.stdout is not None and sys.stdout.isatty()


# Wide enough for ids where nobody's terminal sets the width.
console = Console(highlight=False, soft_wrap=True, width=None if _on_a_terminal() else 240)
stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON document, indented. Times are ISO 8601, as in the API."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2, default=_plain))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """A table, or the line `empty` where there are no rows."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        # Ids are there to be copied.
        table.add_column(column, no_wrap=column in IDS, min_width=36 if column in IDS else None)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    if table.row_count:
        console.print(table)
    else:
        stderr.print(empty)


def local_time(text: str | None) -> datetime | None:
    """A time of the API, for a table."""
    return datetime.fromisoformat(text) if text else None


def zoned(given: datetime | None) -> datetime | None:
    """A local time that was given, with its time zone.

    Raises:
        InvalidInput: it lies where the calendar ends.
    """
    try:
        return given.astimezone() if given else None
    except (ValueError, OverflowError):
        raise InvalidInput(f"{given} is too early or too late for a time: give one from 1970 to 9998.") from None


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _cell(value: Any) -> Text:
    if isinstance(value, datetime):
        return Text(value.astimezone().strftime("%Y-%m-%d %H:%M:%S"))
    text = "" if value is None else str(value)
    return Text(text, style=STATE_STYLES.get(text, ""))


def fail(error: MinionError | MinionsError) -> int:
    """Prints an error to standard error, as JSON where --json was given. Returns the exit code."""
    if "--json" in sys.argv:
        typer.echo(
            json.dumps({"error": {"type": error.code, "message": error.message, **error.detail}}, default=str), err=True
        )
    else:
        stderr.print(Text.assemble(("Error: ", "bold red"), error.message))
    return exit_code(error)


def exit_code(error: MinionError | MinionsError) -> int:
    """The exit status that an error stands for; the client's errors have the codes of ours."""
    if isinstance(error, MinionError):
        return error.exit_code
    known = {kind.code: kind.exit_code for kind in _kinds(MinionError)}
    return known.get(error.code, known[errors.MinionError.code])


def _kinds(root: type[MinionError]) -> list[type[MinionError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in _kinds(child))]


def interactive() -> bool:
    """Whether a person watches."""
    return _on_a_terminal() and os.environ.get("TERM") != "dumb"
