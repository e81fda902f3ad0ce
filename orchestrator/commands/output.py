"""Output of commands: tables for people, JSON for programs, one line for an error.

All output of the command line goes through this module, and therefore through `shared.contracts.visible_text`: text
from a model, a function or a caller is displayed by the terminal and never interpreted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from minions.errors import MinionsError
from shared import errors
from shared.contracts.visible_text import visible
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


def on_a_terminal() -> bool:
    """Return whether standard output is a terminal."""
    # It is None if closed (`minion tasks >&-`).
    return sys.stdout is not None and sys.stdout.isatty()


class SafeConsole(Console):
    """Console that sends only its own control characters, and interprets no markup in its output."""

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, highlight=False, soft_wrap=True, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Convert a string to a text."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Render a table, text or other object."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


# Wide enough for ids if no terminal sets the width.
console = SafeConsole(width=None if on_a_terminal() else 240)
stderr = SafeConsole(stderr=True)


def styled(*parts: str | tuple[str, str]) -> Text:
    """Return a text composed of strings and (string, style) pairs."""
    # Rich drops some of the control characters, and measures the others wrongly.
    safe = [visible(part) if isinstance(part, str) else (visible(part[0]), part[1]) for part in parts]
    return Text.assemble(*safe)


def indent(text: str, width: int = 4) -> str:
    """Return the text with its further lines indented, so that they cannot be mistaken for our own output."""
    return visible(text).replace("\n", "\n" + " " * width)


def print_text(text: str, *, end: str = "\n", err: bool = False) -> None:
    """Print text as it is, neither wrapped nor styled."""
    typer.echo(visible(text) + end, nl=False, err=err)


def print_json(value: Any) -> None:
    """Print one JSON document, indented. Times are ISO 8601, as in the API."""
    print_text(json.dumps(value, ensure_ascii=False, indent=2, default=_plain))


def print_json_line(value: Any, *, err: bool = False) -> None:
    """Print one JSON document on a line."""
    print_text(json.dumps(value, ensure_ascii=False, default=_plain), err=err)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Print a table, or the line `empty` if there are no rows."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        # Ids must be complete for copying.
        table.add_column(column, no_wrap=column in IDS, min_width=36 if column in IDS else None)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    if table.row_count:
        console.print(table)
    else:
        stderr.print(empty)


def local_time(text: str | None) -> datetime | None:
    """Convert an API time for display in a table."""
    return datetime.fromisoformat(text) if text else None


def zoned(given: datetime | None) -> datetime | None:
    """Return a time with a time zone; a time without one is local.

    Raises:
        InvalidInput: the time is at the end of the calendar.
    """
    try:
        return given.astimezone() if given else None
    except (ValueError, OverflowError):
        raise InvalidInput(f"{given} is too early or too late: give a time from 1970 to 9998.") from None


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _cell(value: Any) -> Text:
    if isinstance(value, datetime):
        return Text(value.astimezone().strftime("%Y-%m-%d %H:%M:%S"))
    text = "" if value is None else str(value)
    return styled((text, STATE_STYLES.get(text, "")))


def fail(error: MinionsError) -> int:
    """Print an error to standard error, as JSON if --json was given. Return the exit code."""
    print_error(error.code, error.message, **error.detail)
    return exit_code(error)


def print_error(kind: str, message: str, **detail: Any) -> None:
    """Print an error to standard error: as one line, or as a JSON object if --json was given."""
    if "--json" in sys.argv:
        print_json_line({"error": {"type": kind, "message": message, **detail}}, err=True)
    else:
        stderr.print(styled(("Error: ", "bold red"), indent(message)))


def exit_code(error: MinionsError) -> int:
    """Return the exit status of an error. The codes of errors that the API returned are looked up."""
    if isinstance(error, MinionError):
        return error.exit_code
    known = {kind.code: kind.exit_code for kind in _kinds(MinionError)}
    return known.get(error.code, known[errors.MinionError.code])


def _kinds(root: type[MinionError]) -> list[type[MinionError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in _kinds(child))]


def interactive() -> bool:
    """Return whether a person is watching."""
    return on_a_terminal() and os.environ.get("TERM") != "dumb"
