"""`minion errors`: kinds of errors, resolve and ignore them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import typer

from orchestrator.commands.client import ACTOR, connect
from orchestrator.commands.durations import seconds_of
from orchestrator.commands.output import AS_JSON, console, local_time, print_json, print_table
from shared.contracts.visible_text import one_line

app = typer.Typer(
    help="See, resolve and ignore kinds of errors: list, show, resolve, ignore, reopen.",
    invoke_without_command=True,
)
FINGERPRINT = typer.Argument(help="The fingerprint: `minion errors` lists them.")
LAST = typer.Option("24h", help="The time range until now, such as 90m, 12h, 7d.")
NAMESPACE = typer.Option(None, "--namespace", help="The namespace.")
REASON = typer.Option(None, "--reason", help="The reason, for the record.")


def register(commands: typer.Typer) -> None:
    """Add the commands."""
    commands.add_typer(app, name="errors")


@app.callback()
def _default(context: typer.Context, as_json: bool = AS_JSON) -> None:
    if context.invoked_subcommand is None:
        list_errors("24h", None, None, None, limit=50, as_json=as_json)


@app.command("list")
def list_errors(
    last: str = LAST,
    agent: str | None = typer.Option(None, "--agent", "-a", help="Only failures of this agent."),
    state: Literal["open", "reopened", "resolved", "ignored"] | None = typer.Option(
        None, "--state", "-s", help="Only kinds in this state."
    ),
    namespace: str | None = NAMESPACE,
    limit: int = typer.Option(50, "--limit", "-n", min=1, max=200, help="How many kinds, the most frequent first."),
    as_json: bool = AS_JSON,
) -> None:
    """List the kinds of errors of a time range. Their counts outlive the tasks."""
    with connect() as client:
        found = client.errors(since=_since(last), agent=agent, state=state, namespace=namespace, limit=limit)
    if as_json:
        print_json(found)
        return
    print_table(
        ("fingerprint", "state", "tasks", "share", "agents", "first", "last", "error"),
        (
            (
                each["fingerprint"],
                _state(each),
                each["tasks"],
                f"{100 * each['share']:.0f} %",
                _agents(each),
                local_time(each["first_at"]),
                local_time(each["last_at"]),
                (each["message"] or each["type"])[:100],
            )
            for each in found["items"]
        ),
        empty="No failures in that time. The latest seconds may not be counted yet.",
    )


@app.command()
def show(fingerprint: str = FINGERPRINT, last: str = LAST, namespace: str | None = NAMESPACE) -> None:
    """Show a kind of error as JSON, with its number by the hour."""
    with connect() as client:
        print_json(client.error(fingerprint, since=_since(last), namespace=namespace))


@app.command()
def resolve(
    fingerprint: str = FINGERPRINT,
    reason: str | None = REASON,
    namespace: str | None = NAMESPACE,
    actor: str | None = ACTOR,
) -> None:
    """Mark a kind of error as resolved, until a task fails with it again."""
    _decide(fingerprint, "resolved", reason, namespace, actor)


@app.command()
def ignore(
    fingerprint: str = FINGERPRINT,
    reason: str | None = REASON,
    namespace: str | None = NAMESPACE,
    actor: str | None = ACTOR,
) -> None:
    """Mark a kind of error as ignored: the page of errors hides it."""
    _decide(fingerprint, "ignored", reason, namespace, actor)


@app.command()
def reopen(fingerprint: str = FINGERPRINT, namespace: str | None = NAMESPACE, actor: str | None = ACTOR) -> None:
    """Open a kind of error that was resolved or ignored."""
    _decide(fingerprint, "open", None, namespace, actor)


def _decide(fingerprint: str, state: str, reason: str | None, namespace: str | None, actor: str | None) -> None:
    with connect(actor) as client:
        decided = client.decide_error(fingerprint, state, reason, namespace)
    console.print(f"{one_line(decided['fingerprint'])} is {decided['state']}.")


def _since(last: str) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds_of(last, "--last"))


def _state(kind: dict[str, Any]) -> str:
    again = kind["seen_again"]
    return f"{kind['state']} (version {again['version']})" if again and again["version"] else str(kind["state"])


def _agents(kind: dict[str, Any]) -> str:
    return ", ".join(dict.fromkeys(each["agent"] for each in kind["versions"] if each["agent"]))
