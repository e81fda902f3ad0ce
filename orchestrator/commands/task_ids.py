"""References to tasks in commands: an id, its first characters, or `@last`.

The API resolves the first characters. `@last` is the last task that this user submitted or replayed from this machine,
to whichever system; a file in the user's state folder stores its id.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

import typer

from shared.errors import InvalidInput, NotConfigured, NotFound
from shared.settings import user_state_dir

LAST = "@last"
BEGINNING = re.compile("[0-9a-fA-F]{8,32}")
"""Hexadecimal digits of an id, or of its beginning."""
HELP = "The task's id, at least its first 8 characters, or @last for the one that you submitted or replayed last."


def remember(task_id: str) -> None:
    """Remember this task as `@last`. Failure to store it affects only `@last`."""
    with suppress(OSError, NotConfigured):
        file = _file()
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = file.with_suffix(f".{os.getpid()}")
        new.write_text(task_id, encoding="ascii")
        new.replace(file)


def named(written: str) -> str:
    """Return the id that an argument refers to.

    Raises:
        InvalidInput: the argument cannot be an id.
        NotFound: the argument is `@last`, and no task is remembered.
    """
    if written != LAST:
        if not BEGINNING.fullmatch(written.replace("-", "")):
            raise InvalidInput(
                f"{written[:50]!r} is not the id of a task: it must be a whole id, at least its first 8 hexadecimal "
                f"digits, or {LAST}."
            )
        return written
    try:
        return _file().read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise NotFound(
            f"There is no {LAST} task: no task that you submitted or replayed is recorded in {_file()}. Give a task's "
            "id; `minion tasks` lists them."
        ) from None


def _file() -> Path:
    return user_state_dir() / "last_task"


TASK = typer.Argument(help=HELP, metavar="TASK", parser=named)
OPTIONAL_TASKS = typer.Argument(None, help=HELP, metavar="[TASK]...", parser=named)
TASKS = typer.Argument(help=HELP, metavar="TASK...", parser=named)
