"""The `minion` command.

Exit codes: 0 done; 1 a task failed; 2 wrong usage; else those of sysexits.h: 65 input refused, 66 not found,
69 something cannot be reached, 70 a fault of ours, 75 not finished yet, 77 no permission, 78 not configured.
"""

from __future__ import annotations

import os
import sys

import typer

from minions.errors import MinionsError
from orchestrator.commands import (
    agents,
    budgets,
    decisions,
    definitions,
    diff,
    doctor,
    functions,
    processes,
    prune,
    replays,
    rules,
    schedules,
    secrets,
    tasks,
    webhooks,
)
from orchestrator.commands.output import fail
from orchestrator.local.parent import FOLLOW, follow_parent
from shared import __version__
from shared.errors import MinionError

app = typer.Typer(
    name="minion",
    help="Task queue and workers for AI agents, on Celery, Redis and PostgreSQL.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (processes, definitions, tasks, decisions, budgets, replays, diff, rules, prune, doctor):
    module.register(app)
app.add_typer(agents.app, name="agents")
app.add_typer(functions.app, name="functions")
app.add_typer(schedules.app, name="schedules")
app.add_typer(secrets.app, name="secrets")
app.add_typer(webhooks.app, name="webhooks")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"minions {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
) -> None:
    pass


def main() -> None:
    """Runs the command; expected errors become one line and an exit code, never a traceback."""
    if FOLLOW in os.environ:
        follow_parent(os.environ.pop(FOLLOW))
    try:
        app()
    except (MinionError, MinionsError) as error:
        sys.exit(fail(error))
    except BrokenPipeError:
        # The reader of our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
