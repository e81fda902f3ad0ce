"""`minion dev`: run everything here, store definitions whenever their files are saved, and show what tasks do."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from orchestrator.commands.definitions import tell
from orchestrator.commands.output import console, indent, on_a_terminal, styled
from shared.errors import InvalidDefinition, MinionError
from shared.settings import get_settings

if TYPE_CHECKING:
    from orchestrator.local.offered_tools import OfferedTools
    from orchestrator.local.system import LocalSystem
    from shared.contracts.documents import AnyDefinition
    from shared.definitions.store import Change

LOOK_SECONDS = 0.3


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(dev)


def dev(
    target: str = typer.Argument(
        help="A YAML or JSON file, a folder of them, or a Python module, which is run: FILE.py, package.module, or "
        "one of these with :NAME."
    ),
    pool: list[str] = typer.Option(
        [],
        "--pool",
        "-p",
        metavar="CAPABILITIES[=N]",
        help="A worker pool; by default one pool of 2 for each capability.",
    ),
) -> None:
    """Develop agents: run everything on this machine, store definitions at every save, and show what tasks do."""
    # Imported on use: most commands need no database layer.
    from orchestrator.local.offered_tools import OfferedTools
    from orchestrator.local.system import LocalSystem, parse_pool
    from orchestrator.python_definitions import load

    with suppress(InvalidDefinition):  # a wrong path ends the command; a wrong definition is shown until it is mended
        load(target)
    settings = get_settings()
    tools = OfferedTools(settings.data_dir / "development")
    pools = [parse_pool(text) for text in pool]
    with LocalSystem(settings, pools, flower=False, say=console.print, of_workers=tools.environment()) as system:
        session = _Session(target, system, tools)
        session.apply()
        console.print(f"Pages    {system.places()['Pages']}")
        if on_a_terminal():
            console.print(f"Log in   {system.login_link()}", soft_wrap=True)
        console.print(f"Everything is running. {target} is stored at every save. Stop with Ctrl-C.")
        system.supervise(session.look, seconds=LOOK_SECONDS)


class _Session:
    """The definitions of one target, while an author edits them."""

    def __init__(self, target: str, system: LocalSystem, tools: OfferedTools) -> None:
        from orchestrator.commands.activity import Activity
        from orchestrator.local.sources import Sources
        from shared.database.connections import get_engine

        self.target = target
        self.system = system
        self.tools = tools
        self.sources = Sources([_folder(target)], without=system.settings.data_dir)
        self.activity = Activity(get_engine(), system.places()["Pages"])
        self._builtin = False

    def look(self) -> None:
        """Store the definitions if a file has changed, and show what tasks did."""
        from sqlalchemy.exc import SQLAlchemyError

        if changed := self.sources.changed():
            names = ", ".join(sorted({file.name for file in changed})[:5])
            console.print(styled((f"Saved: {names}", "bold")))
            if self.apply() and self._builtin and any(file.suffix == ".py" for file in changed):
                self.system.restart_pools()
                console.print("The workers were restarted: they have builtin tools.")
        try:
            self.activity.show()
        except SQLAlchemyError:
            return  # the server is being restarted; what happened is shown afterwards

    def apply(self) -> bool:
        """Store the definitions, or show why they cannot be stored. Return whether they were."""
        from sqlalchemy.exc import SQLAlchemyError

        from orchestrator.python_definitions import load
        from shared.database.connections import reason

        try:
            definitions = load(self.target)
            self._offer_tools(definitions)
            changes = _store(definitions)
        except (MinionError, SQLAlchemyError) as error:
            text = error.message if isinstance(error, MinionError) else f"{reason(error)}. Save again to retry."
            console.print(styled(("Error: ", "bold red"), indent(text)))
            return False
        tell([change for change in changes if change.action != "unchanged"])
        return True

    def _offer_tools(self, definitions: list[AnyDefinition]) -> None:
        from orchestrator.local.offered_tools import sources_of
        from orchestrator.python_definitions import is_python, offered_tools

        builtin = [str(each.builtin) for each in definitions if each.kind == "tool" and each.builtin]
        self._builtin = bool(builtin)
        self.sources.add(sources_of(builtin))
        if self._builtin and is_python(self.target):
            self.tools.offer(offered_tools(self.target), _root(self.target))


def _store(definitions: list[AnyDefinition]) -> list[Change]:
    from sqlalchemy.orm import Session

    from shared.database.connections import get_engine
    from shared.definitions.apply import store_definitions

    with Session(get_engine()) as session:
        return store_definitions(session, definitions)


def _folder(target: str) -> Path:
    """Return the folder in which an author edits the sources of a target."""
    from orchestrator.python_definitions import is_python

    place = target.partition(":")[0]
    if place.endswith(".py") or not is_python(target):
        path = Path(place).resolve()
        return path if path.is_dir() else path.parent
    return Path.cwd()


def _root(target: str) -> Path:
    """Return the folder from which a module is imported."""
    from minions.modules import located

    place = target.partition(":")[0]
    return located(Path(place))[0] if place.endswith(".py") else Path.cwd()
