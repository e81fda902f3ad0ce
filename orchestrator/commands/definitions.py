"""Commands for the schema and definitions: migrate, init, apply, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from orchestrator.commands.output import AS_JSON, console, print_json, print_table, print_text, styled
from shared.errors import FileFault
from shared.settings import get_settings

if TYPE_CHECKING:
    from shared.definitions.store import Change

STYLES = {"created": "green", "changed": "yellow", "canary": "cyan", "inactive": "cyan", "unchanged": "dim"}
WOULD = {"created": "would create", "changed": "would change", "canary": "would try", "inactive": "would store"}
WIDTH = 1 + max(map(len, (*STYLES, *WOULD.values())))


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (migrate, init, apply, export):
        app.command()(command)


def migrate(
    after: bool = typer.Option(
        False,
        "--after",
        help="Also remove what only the previous release used; none of its processes may run any more.",
    ),
) -> None:
    """Bring the database's schema to this release; safe to run twice, or twice at once."""
    # Imported on use: `minion submit` starts faster without the database layer.
    from shared.database import schema
    from shared.database.connections import get_engine
    from shared.database.sessions import wait_to_connect

    wait_to_connect(get_settings())
    old, new = schema.migrate(get_engine(), after=after)
    console.print(f"The schema is at {new}" + (" (unchanged)." if old == new else f" (was {old or 'empty'})."))


def init() -> None:
    """Store the default agents where they are missing; safe to run twice, or twice at once."""
    from shared.database.connections import get_engine
    from shared.database.schema import wait_for_database
    from shared.definitions import defaults

    wait_for_database(get_settings())
    created = defaults.init(get_engine())
    names = ", ".join(f"{change.kind} {change.name}" for change in created)
    console.print(f"Created {names}." if created else "The default agents already exist.")


def apply(
    target: str = typer.Argument(
        help="A YAML or JSON file, a folder of them, or a Python module, which is run: FILE.py, package.module, or "
        "one of these with :NAME."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would change, without storing anything."),
    strict: bool = typer.Option(False, "--strict", help="Treat warnings, such as an unknown model, as errors."),
    share: str | None = typer.Option(
        None, "--share", help="Give new versions of agents this share of new tasks, as canaries: 10%."
    ),
    inactive: bool = typer.Option(
        False,
        "--inactive",
        help="Store new versions of existing agents without activating them, to evaluate them first.",
    ),
    as_json: bool = AS_JSON,
) -> None:
    """Store definitions of agents, tools, functions and MCP servers, all or none; changed ones become new versions."""
    if inactive and share is not None:
        raise typer.BadParameter("--inactive and --share exclude each other: a canary gets tasks.")
    changes = store(target, dry_run=dry_run, strict=strict, share=share, inactive=inactive)
    if as_json:
        fields = ("kind", "name", "action", "version", "because", "warnings")
        print_json([{name: getattr(change, name) for name in fields} for change in changes])
    else:
        tell(changes, dry_run=dry_run)
    if dry_run and not as_json:
        console.print("Nothing was stored (--dry-run).")


def store(
    target: str, *, dry_run: bool = False, strict: bool = False, share: str | None = None, inactive: bool = False
) -> list[Change]:
    """Apply the definitions in a file, a folder or a Python module.

    Args:
        share: of the new tasks that new versions of agents get, as canaries.
        inactive: store new versions of agents without activating them.

    Raises:
        InvalidDefinition: describes the first error; nothing is stored.
    """
    from sqlalchemy.orm import Session

    from orchestrator.python_definitions import load
    from shared.database.connections import get_engine
    from shared.database.schema import wait_for_database
    from shared.definitions.apply import store_definitions

    definitions = load(target)
    wait_for_database(get_settings())
    with Session(get_engine()) as session:
        return store_definitions(session, definitions, dry_run=dry_run, strict=strict, share=share, inactive=inactive)


def tell(changes: list[Change], *, dry_run: bool = False) -> None:
    """Print one line for each change."""
    for change in changes:
        action = WOULD.get(change.action, change.action) if dry_run else change.action
        because = f" (follows {change.because})" if change.because else ""
        what = f"{change.kind} {change.name} version {change.version}{because}"
        console.print(styled((f"{action:{WIDTH}}", STYLES[change.action]), what))
        for warning in change.warnings:
            console.print(styled(("warning: ", "yellow"), warning))


def export(
    folder: Path | None = typer.Argument(
        None, help="The folder to write a file for each definition to; by default they are printed."
    ),
    kind: Literal["agent", "tool", "function", "mcp_server"] | None = typer.Option(
        None, help="Only definitions of this kind."
    ),
) -> None:
    """Write the active definitions as YAML that applies again unchanged."""
    from sqlalchemy.orm import Session

    from shared.database.connections import get_engine
    from shared.database.schema import wait_for_database
    from shared.definitions.apply import export_definitions
    from shared.definitions.files import dump

    wait_for_database(get_settings())
    with Session(get_engine()) as session:
        found = [definition for definition in export_definitions(session) if kind in (None, definition.kind)]
    if folder is None:
        print_text("---\n".join(dump(definition) for definition in found), end="")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for definition in found:
            (folder / f"{definition.kind}-{definition.name}.yaml").write_text(dump(definition), encoding="utf-8")
    except OSError as error:
        raise FileFault(f"The definitions cannot be written to {folder}: {error}. Name another folder.") from None
    print_table(("written to", "files"), [(folder, len(found))], empty="")
