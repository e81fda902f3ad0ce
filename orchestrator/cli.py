"""The `minion` command.

Exit codes: 0 done; 1 a task failed; 2 wrong usage; otherwise those of sysexits.h: 65 input refused, 66 not found, 69
service unavailable, 70 internal error, 74 a file cannot be read or written, 75 not finished yet, 77 no permission, 78
not configured.
"""

from __future__ import annotations

import os
import sys
import traceback
from types import ModuleType

import typer
from typer.models import CommandInfo, TyperInfo

from minions.errors import MinionsError
from orchestrator.commands import (
    agents,
    alerts,
    audit,
    budgets,
    bulk,
    capacity,
    console,
    costs,
    debug,
    decisions,
    definitions,
    development,
    diff,
    docs,
    doctor,
    erase,
    errors,
    evaluations,
    files,
    functions,
    keys,
    mcp,
    memories,
    processes,
    prune,
    replays,
    rules,
    scaffolding,
    schedules,
    secrets,
    sessions,
    standing_budgets,
    stats,
    submitters,
    tasks,
    top,
    webhooks,
    workers,
)
from orchestrator.commands.output import fail, print_error, print_text
from orchestrator.local.parent import FOLLOW, follow_parent
from shared import __version__
from shared.errors import FileFault, InvalidInput, MinionError, Unavailable, requirement

app = typer.Typer(
    name="minion",
    help="Task queue and workers for AI agents, on Celery, Redis and PostgreSQL.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Groups of commands in `minion --help`.
GROUPS: tuple[tuple[str, tuple[ModuleType, ...]], ...] = (
    ("Run Minions", (processes, development)),
    ("Tasks", (tasks, console, debug, bulk, files, budgets, diff)),
    ("Tasks that wait for a person", (decisions,)),
    ("Failed tasks", (errors, replays)),
    ("When tasks start", (rules, standing_budgets, schedules)),
    ("Recorded tasks", (evaluations,)),
    ("Definitions", (scaffolding, definitions, agents, functions, mcp, secrets, docs)),
    (
        "Operation",
        (
            *(
                top,
                workers,
                stats,
                costs,
                alerts,
                keys,
                sessions,
                submitters,
                audit,
                webhooks,
                doctor,
                prune,
                erase,
            ),
            *(memories, capacity),
        ),
    ),
)
for group, modules in GROUPS:
    earlier = len(app.registered_commands), len(app.registered_groups)
    for module in modules:
        module.register(app)
    added: list[CommandInfo | TyperInfo] = []
    added += app.registered_commands[earlier[0] :]
    added += app.registered_groups[earlier[1] :]
    for each in added:
        each.rich_help_panel = group


def _show_version(wanted: bool) -> None:
    if wanted:
        print_text(f"minions {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
) -> None:
    pass


def main() -> None:
    """Run the command and exit. Expected errors become one line and an exit code."""
    if FOLLOW in os.environ:
        follow_parent(os.environ.pop(FOLLOW))
    _replace_closed_streams()
    try:
        sys.exit(app(prog_name="minion", standalone_mode=False))
    except BrokenPipeError:
        # The reader of the output closed the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except typer.TyperException as error:
        sys.exit(_wrong_usage(error))
    except Exception as error:
        known = _expected(error)
        if known is not None:
            sys.exit(fail(known))
        print_text(traceback.format_exc(), end="", err=True)
        sys.exit(fail(MinionError("This is a bug in Minions. Please report the lines above.")))


def _wrong_usage(error: typer.TyperException) -> int:
    """Print one line; if the help was printed instead, the message is empty."""
    message = requirement(error.format_message()).strip()
    if message:
        context: typer.Context | None = getattr(error, "ctx", None)
        end = "" if message.endswith((".", "?")) else "."
        see = f" See `{context.command_path} --help`." if context else ""
        print_error("usage", f"{message}{end}{see}")
    return error.exit_code


def _replace_closed_streams() -> None:
    """Replace closed standard input or output (`minion cancel TASK >&-`) with empty streams."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for as long as the process lives


def _expected(error: Exception) -> MinionsError | None:
    """Return the error to show; None if the exception is unexpected."""
    if isinstance(error, MinionsError):
        return error
    if isinstance(error, UnicodeError):
        return InvalidInput(f"Arguments, files and the terminal must be UTF-8: {error}.")
    if isinstance(error, OSError):
        return FileFault(f"A file cannot be read or written: {error}.")
    if "sqlalchemy" not in sys.modules:  # commands that need no database start faster without it
        return None
    from sqlalchemy.exc import SQLAlchemyError

    from shared.database.connections import is_transient, reason

    if not isinstance(error, SQLAlchemyError):
        return None
    if is_transient(error):
        return Unavailable(
            f"The connection to the database was lost: {reason(error)}. Check that the database is running, and try "
            "again."
        )
    return MinionError(
        f"The database refused a statement: {reason(error)}. This is a bug in Minions. Please report it."
    )


if __name__ == "__main__":
    main()
