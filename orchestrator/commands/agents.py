"""`minion agents`: list, show, test the routing, and the lifecycle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from orchestrator.commands.client import connect
from orchestrator.commands.output import AS_JSON, console, print_json, print_table
from shared.contracts.shares import ALL, hundredths_of
from shared.settings import get_settings

app = typer.Typer(
    help="Manage agents: list, show, route, activate, deprecate, disable, roll back.", invoke_without_command=True
)
REASON = typer.Option(None, "--reason", help="The reason, for the record.")


def register(commands: typer.Typer) -> None:
    """Add the commands."""
    commands.add_typer(app, name="agents")


@app.callback()
def _default(context: typer.Context, as_json: bool = AS_JSON) -> None:
    if context.invoked_subcommand is None:
        list_agents(as_json=as_json)


@app.command("list")
def list_agents(as_json: bool = AS_JSON) -> None:
    """List agents."""
    with connect() as client:
        found = list(client.agents())
    if as_json:
        print_json(found)
        return
    print_table(
        ("agent", "status", "version", "type", "capabilities", "description"),
        (
            (a["name"], a["status"], _versions(a), a["type"], ", ".join(a["capabilities"]), a["description"][:60])
            for a in found
        ),
        empty="No agents. `minion apply PATH` stores some.",
    )


@app.command()
def show(name: str) -> None:
    """Show an agent's definition and versions as JSON."""
    with connect() as client:
        print_json(client.agent(name))


@app.command()
def route(message: str = typer.Argument(help="The last message of a task that names no agent.")) -> None:
    """Show which agent a message would go to, and by which scores; nothing is submitted."""
    with connect() as client:
        found = client.route(message)
    print_table(
        ("agent", "score", ""),
        (
            (each["agent"], each["score"], "chosen" if each["agent"] == found["agent"] else "")
            for each in found["scores"]
        ),
        empty="No agent has a word of the message in its name, capabilities or description.",
    )
    if found["problem"]:
        console.print(f"The task would fail: {found['problem']}")
    elif found["by"] == "setting":
        console.print(f"MINION_ROUTING_AGENT sends all messages to {found['agent']}.")


@app.command()
def activate(
    name: str,
    to: int | None = typer.Option(None, "--to", min=1, help="The version to make the active one, or the canary."),
    share: str | None = typer.Option(
        None, "--share", help="The share of new tasks that the version gets, as a canary: 10%. By default all."
    ),
    max_failures: str | None = typer.Option(
        None,
        "--max-failures",
        help="Roll the canary back if its failure rate is higher by more than this, in percentage points: 5%.",
    ),
    max_cost: str | None = typer.Option(
        None, "--max-cost", help="Roll it back if a task costs more than this in addition, on average: 50%."
    ),
    max_score_drop: float | None = typer.Option(
        None, "--max-score-drop", help="Roll it back if the mean score of an evaluator is lower by more than this: 0.1."
    ),
    min_tasks: int | None = typer.Option(
        None, "--min-tasks", help="Decide nothing before this number of tasks of each version have ended: 20."
    ),
    reason: str | None = REASON,
) -> None:
    """Let an agent accept tasks again; with --to, make a version the active one, or a canary with a share of them."""
    bands = {
        "max_failures": _fraction("--max-failures", max_failures),
        "max_cost": _fraction("--max-cost", max_cost),
        "max_score_drop": max_score_drop,
        "min_tasks": min_tasks,
    }
    given = {band: value for band, value in bands.items() if value is not None}
    if (share is not None or given) and (to is None or share is None):
        raise typer.BadParameter("a canary needs both --to and --share.")
    if to is None:
        _change(lambda registry: registry.set_status(name, "active", reason))
    elif share is None:
        _change(lambda registry: registry.roll_back(name, to, reason))
    else:
        _change(lambda registry: registry.start_canary(name, to, share, reason, **given))
        if hundredths_of(share) < ALL:
            console.print(f"Version {to} gets {share} of new tasks. `minion agents show {name}` shows its figures.")


@app.command()
def deprecate(name: str, reason: str | None = REASON) -> None:
    """Mark an agent as one to move away from; it still accepts tasks."""
    _change(lambda registry: registry.set_status(name, "deprecated", reason))


@app.command()
def disable(name: str, reason: str | None = REASON) -> None:
    """Refuse new tasks for an agent; accepted tasks still run."""
    _change(lambda registry: registry.set_status(name, "disabled", reason))


@app.command()
def rollback(
    name: str,
    to: int = typer.Option(..., "--to", min=1, help="The version to go back to."),
    reason: str | None = REASON,
) -> None:
    """Make an earlier version the active one, until another definition is applied."""
    _change(lambda registry: registry.roll_back(name, to, reason))


def _versions(agent: dict[str, Any]) -> str:
    canary = agent.get("canary")
    return str(agent["version"]) + (f", {canary['share']} of tasks: {canary['version']}" if canary else "")


def _fraction(option: str, value: str | None) -> float | None:
    """Return a percentage, or a number, as a number."""
    if value is None:
        return None
    try:
        return float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
    except ValueError:
        raise typer.BadParameter(f"{option} must be a percentage, such as 5%.") from None


def _change(action: Callable[[Any], Any]) -> None:
    # Imported on use: lists go over HTTP and need no database layer.
    from sqlalchemy.orm import Session

    from shared.database.connections import get_engine
    from shared.database.schema import wait_for_database
    from shared.registry import AgentRegistry

    wait_for_database(get_settings())
    with Session(get_engine()) as session:
        agent = action(AgentRegistry(session))
    console.print(f"{agent.name} is {agent.status}, version {agent.version}.")
