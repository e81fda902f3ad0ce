"""`minion mcp`: tools of MCP servers as definitions, and agents as tools of an MCP client."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from orchestrator.commands.client import ACTOR
from orchestrator.commands.definitions import tell
from orchestrator.commands.output import AS_JSON, console, print_json, print_table, styled
from shared.errors import FileFault, InvalidInput, NotFound
from shared.settings import get_settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from shared.contracts.documents import McpServerDefinition, ToolDefinition
    from shared.definitions.mcp_tools import PulledTool

app = typer.Typer(
    help="Pull tools of MCP servers: add, list, tools, diff, pull. Serve agents to an MCP client: serve.",
    no_args_is_help=True,
)
NAMESPACE = typer.Option("default", "--namespace", help="The namespace of the server and its tools.")
SERVER = typer.Argument(help="The server's name.")
TOOLS = typer.Argument(default_factory=list, help="Only these tools, by the server's names or ours.")
STYLES = {"new": "green", "changed": "yellow", "gone": "red", "unusable": "red", "same": "dim"}
LINE_STYLES = {"-": "red", "+": "green", "@": "cyan"}
MAX_LINES = 200
MAX_WIDTH = 400
MAX_DESCRIPTION = 100


def register(commands: typer.Typer) -> None:
    """Add the commands."""
    commands.add_typer(app, name="mcp")


@app.command()
def add(
    name: str = typer.Argument(help="A name for the server; the names of its tools begin with it."),
    url: str | None = typer.Argument(None, help="The address of its MCP endpoint."),
    stdio: str | None = typer.Option(
        None, "--stdio", help="Instead of an address: a program by its name in MINION_MCP_STDIO of the workers."
    ),
    header: list[str] = typer.Option(
        [], "--header", help="A header of every request: 'Authorization: Bearer ${secret:NAME}'."
    ),
    trusted: bool = typer.Option(
        False, "--trusted", help="Believe what the server says about the effects of its tools."
    ),
    timeout: float = typer.Option(30.0, "--timeout", help="Seconds that one call may take."),
    namespace: str = NAMESPACE,
) -> None:
    """Store a server's definition, or change it. Its tools are pulled separately. A changed definition keeps its
    `description`, `oauth` and `max_bytes`, unless the address is another one.
    """
    from shared.contracts.documents import parse_definition
    from shared.definitions.apply import store_definitions

    headers = dict(map(_header, header))
    server = {
        "kind": "mcp_server",
        "name": name,
        "url": url,
        "stdio": stdio,
        "headers": headers,
        "trusted": trusted,
        "timeout": timeout,
    }
    with _session() as session:
        kept = _kept(session, name, url, namespace)
        tell(store_definitions(session, [parse_definition({**kept, **server})], namespace=namespace))
    console.print(f"`minion mcp pull {name}` stores its tools.")


@app.command("list")
def list_servers(as_json: bool = AS_JSON, namespace: str = NAMESPACE) -> None:
    """List the servers, with the number of tools that were pulled from each."""
    from shared.definitions.mcp_tools import servers

    with _session() as session:
        found = servers(session, namespace)
    if as_json:
        print_json(found)
        return
    rows = [(each["name"], each["version"], each["url"], each["trusted"], each["tools"]) for each in found]
    print_table(
        ("name", "version", "url", "trusted", "tools"), rows, empty="No MCP servers. `minion mcp add` adds one."
    )


@app.command()
def tools(server: str = SERVER, as_json: bool = AS_JSON, namespace: str = NAMESPACE) -> None:
    """Ask a server for its tools, and show which are stored and what a pull would change."""
    with _session() as session:
        found = _compared(session, server, namespace, [])
    if as_json:
        print_json([_facts(each) for each in found])
        return
    rows = [
        (each.name, each.tool, each.state, shown.effect if (shown := each.after or each.before) else "", _about(each))
        for each in found
    ]
    print_table(("tool", "at the server", "state", "effect", "description"), rows, empty="The server lists no tools.")


@app.command()
def diff(server: str = SERVER, names: list[str] = TOOLS, as_json: bool = AS_JSON, namespace: str = NAMESPACE) -> None:
    """Show how a server's tools differ from the stored ones; exit status 1 if a stored one does."""
    with _session() as session:
        found = _compared(session, server, namespace, names)
    different = [each for each in found if each.state != "same"]
    if as_json:
        print_json([_facts(each) for each in different])
    else:
        for each in different:
            _print_difference(each)
        console.print(_summary(found))
    if any(each.differs for each in found):
        raise typer.Exit(1)


@app.command()
def pull(
    server: str = SERVER,
    names: list[str] = TOOLS,
    to: Path | None = typer.Option(None, "--to", help="Write definitions into this folder, to review and apply them."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would change, without storing anything."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not show the differences and ask for confirmation."),
    namespace: str = NAMESPACE,
) -> None:
    """Store a server's tools as they are now: new ones, and new versions of those that changed."""
    with _session() as session:
        found = _compared(session, server, namespace, names)
        pulled = [each for each in found if each.after is not None and each.state != "same"]
        if pulled and to is not None:
            _write(pulled, to)
        elif pulled:
            if not (yes or dry_run):
                _confirm(pulled)
            _store(session, pulled, namespace, dry_run=dry_run)
    for each in found:
        if each.fault is not None:
            console.print(styled(("left out: ", "yellow"), f"{each.tool}: {each.fault}"))
        if each.state == "gone":
            console.print(styled(("kept: ", "yellow"), f"{each.name}, which the server no longer lists"))
    if not pulled:
        console.print("Nothing to store: the tools are as they were pulled.")


@app.command()
def serve(
    namespace: str = typer.Option(None, help="The agents' namespace, for a key that is not bound to one."),
    actor: str = ACTOR,
) -> None:
    """Serve an MCP client that starts this command, over standard input and output: each agent is a tool. It needs
    the address of the API and a key, and no database.
    """
    # Imported here, because it takes a while, and no other command needs it.
    from orchestrator.mcp import stdio
    from shared.telemetry import configure

    settings = get_settings()
    # Clients keep what a server writes to standard error. Without this, tracebacks would show variables.
    configure(settings, component="mcp")
    stdio.serve(settings.require_api_url(), settings.require_api_key(), namespace=namespace, actor=actor)


@contextmanager
def _session() -> Iterator[Session]:
    from sqlalchemy.orm import Session

    from shared.database.connections import get_engine
    from shared.database.schema import wait_for_database

    wait_for_database(get_settings())
    with Session(get_engine()) as session:
        yield session


def _kept(session: Session, name: str, url: str | None, namespace: str) -> dict[str, Any]:
    """Return the fields of a stored server that have no option, unless its address changes."""
    from shared.definitions.mcp_tools import server_named

    with suppress(NotFound):
        stored = server_named(session, name, namespace)
        if stored.url == url:
            return stored.model_dump(mode="json", include={"description", "oauth", "max_bytes"})
    return {}


def _compared(session: Session, name: str, namespace: str, only: Sequence[str]) -> list[PulledTool]:
    from shared.definitions.mcp_tools import ask, compare, server_named

    server: McpServerDefinition = server_named(session, name, namespace)
    # No transaction stays open while the server answers, nor while a person reads.
    session.rollback()
    listed = ask(server, namespace)
    found = compare(session, server, listed, namespace=namespace, only=only)
    session.rollback()
    return found


def _confirm(pulled: Sequence[PulledTool]) -> None:
    """Show what is stored. The server may list something else than for the last `minion mcp diff`."""
    for each in pulled:
        _print_difference(each)
    typer.confirm(f"Store these tools ({len(pulled)})? Models will read their texts.", abort=True, err=True)


def _store(session: Session, pulled: Sequence[PulledTool], namespace: str, *, dry_run: bool) -> None:
    from shared.definitions.apply import store_definitions

    definitions = [each.after for each in pulled]
    tell(store_definitions(session, definitions, namespace=namespace, dry_run=dry_run), dry_run=dry_run)
    if dry_run:
        console.print("Nothing was stored (--dry-run).")


def _header(given: str) -> tuple[str, str]:
    name, colon, value = given.partition(":")
    if not colon:
        raise InvalidInput("A --header must be NAME: VALUE.")
    return name.strip(), value.strip()


def _write(pulled: Sequence[PulledTool], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for each in pulled:
            text = "\n".join([*_lines(each.after), ""])
            (folder / f"tool-{each.name}.yaml").write_text(text, encoding="utf-8")
    except OSError as error:
        raise FileFault(f"The definitions cannot be written to {folder}: {error}. Name another folder.") from None
    console.print(f"Definitions written to {folder}: {len(pulled)}. `minion apply {folder}` stores them.")


def _facts(each: PulledTool) -> dict[str, Any]:
    from shared.definitions.files import document_of

    before, after = (definition and document_of(definition) for definition in (each.before, each.after))
    return {
        "name": each.name,
        "tool": each.tool,
        "state": each.state,
        "fault": each.fault,
        "before": before,
        "after": after,
    }


def _about(each: PulledTool) -> str:
    if each.fault is not None:
        return each.fault
    definition = each.after or each.before
    said = " ".join(definition.description.split()) if definition is not None else ""
    return said if len(said) <= MAX_DESCRIPTION else said[:MAX_DESCRIPTION] + "…"


def _print_difference(each: PulledTool) -> None:
    console.print(styled((f"{each.state}: ", STYLES[each.state]), f"{each.name} ({each.tool})"))
    if each.fault is not None:
        console.print(f"  {each.fault}")
        return
    lines = list(difflib.unified_diff(_lines(each.before), _lines(each.after), "stored", "listed", n=2, lineterm=""))
    for line in lines[:MAX_LINES]:
        shown = line if len(line) <= MAX_WIDTH else line[:MAX_WIDTH] + "…"
        console.print(styled((shown, LINE_STYLES.get(line[:1], ""))))
    if len(lines) > MAX_LINES:
        console.print(f"… {len(lines) - MAX_LINES} more lines; --json has all.")


def _lines(definition: ToolDefinition | None) -> list[str]:
    from shared.definitions.files import dump

    return [] if definition is None else dump(definition).splitlines()


def _summary(found: Sequence[PulledTool]) -> str:
    counted: Counter[str] = Counter(each.state for each in found)
    return ", ".join(f"{counted[state]} {state}" for state in STYLES if counted[state]) or "The server lists no tools."
