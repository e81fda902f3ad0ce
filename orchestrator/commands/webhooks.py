"""`minion webhooks`: subscriptions to ended tasks, and the outcome of each message."""

from __future__ import annotations

from enum import StrEnum
from itertools import islice
from typing import Any, Literal

import typer

from orchestrator.commands.client import connect
from orchestrator.commands.output import (
    AS_JSON,
    console,
    local_time,
    print_json,
    print_table,
    print_text,
    stderr,
    styled,
)
from orchestrator.commands.tasks import labels_of
from shared.contracts.visible_text import one_line
from shared.tasks.states import State

app = typer.Typer(
    help="Manage webhooks: list, add, show, deliveries, retry, rotate, test, enable, disable, remove.",
    invoke_without_command=True,
)


class Event(StrEnum):
    """What a webhook reports."""

    TASKS = "tasks"
    ALERTS = "alerts"


def register(commands: typer.Typer) -> None:
    """Add the commands."""
    commands.add_typer(app, name="webhooks")


@app.callback()
def _default(context: typer.Context, as_json: bool = AS_JSON) -> None:
    if context.invoked_subcommand is None:
        list_webhooks(as_json=as_json)


@app.command("list")
def list_webhooks(as_json: bool = AS_JSON) -> None:
    """List webhooks."""
    with connect() as client:
        found = list(client.webhooks())
    if as_json:
        print_json(found)
        return
    print_table(
        ("webhook", "enabled", "url", "events", "states", "agents", "labels", "tasks", "pending"),
        (
            (
                w["name"],
                "yes" if w["enabled"] else f"NO {w['disabled_reason'] or ''}".rstrip(),
                w["url"],
                ", ".join(w.get("events", [Event.TASKS])),  # an orchestrator of 0.2 has none
                ", ".join(w["states"]) or "all",
                ", ".join(w["agents"]) or "all",
                ", ".join(f"{name}={value}" for name, value in w["labels"].items()) or "any",
                "roots" if w["roots_only"] else "all",
                w["pending"],
            )
            for w in found
        ),
        empty="No webhooks. `minion webhooks add NAME URL` adds one.",
    )


@app.command()
def add(
    name: str,
    url: str = typer.Argument(help="Where messages go: http:// or https://."),
    state: list[State] = typer.Option([], "--state", "-s", help="Only tasks that end in this state; may be repeated."),
    agent: list[str] = typer.Option([], "--agent", "-a", help="Only tasks of this agent; may be repeated."),
    label: list[str] = typer.Option([], "--label", "-l", metavar="NAME=VALUE", help="Only tasks with this label."),
    event: list[Event] = typer.Option([], "--event", "-e", help="What to report: tasks (the default), alerts."),
    all_tasks: bool = typer.Option(False, "--all-tasks", help="Also the tasks that other tasks create."),
    as_json: bool = AS_JSON,
) -> None:
    """Add a webhook and show its secret, this once."""
    filters: dict[str, Any] = {
        "states": state,
        "agents": agent,
        "labels": labels_of(label),
        "roots_only": not all_tasks,
    } | ({"events": event} if event else {})
    with connect() as client:
        _print_secret(client.add_webhook(name, url, **filters), as_json)


@app.command()
def show(name: str) -> None:
    """Show a webhook as JSON, without its secret."""
    with connect() as client:
        print_json(client.webhook(name))


@app.command()
def deliveries(
    name: str,
    status: Literal["pending", "delivered", "failed"] | None = typer.Option(
        None, "--status", help="Only deliveries with this status."
    ),
    limit: int = typer.Option(20, "--limit", "-n", min=1, max=100_000, help="How many deliveries, the newest first."),
    as_json: bool = AS_JSON,
) -> None:
    """List the messages to a webhook and their outcomes, the newest first."""
    with connect() as client:
        found = list(islice(client.webhook_deliveries(name, status=status), limit))
    if as_json:
        print_json(found)
        return
    print_table(
        ("id", "task", "state", "status", "attempts", "next", "answer", "error"),
        (
            (
                d["id"],
                d["task_id"],
                d["state"],
                d["status"],
                d["attempts"],
                local_time(d["next_at"]),
                d["last_status"],
                d["last_error"],
            )
            for d in found
        ),
        empty="No deliveries.",
    )


@app.command()
def retry(
    delivery_ids: list[str] = typer.Argument(help="The deliveries' ids, or the first 8 characters or more of each."),
    as_json: bool = AS_JSON,
) -> None:
    """Send messages to webhooks again, under the same ids."""
    with connect() as client:
        again = [client.retry_delivery(delivery_id) for delivery_id in delivery_ids]
    if as_json:
        print_json(again)
        return
    for delivery in again:
        console.print(f"{delivery['id']} {delivery['status']}")


@app.command()
def rotate(name: str, as_json: bool = AS_JSON) -> None:
    """Give a webhook a new secret and show it, this once. The old one stays valid for one more day."""
    with connect() as client:
        _print_secret(client.rotate_webhook(name), as_json)


@app.command("test")
def send_test(name: str, as_json: bool = AS_JSON) -> None:
    """Send a test message now; the exit code is 1 if the endpoint does not accept it."""
    with connect() as client:
        answer = client.test_webhook(name)
    if as_json:
        print_json(answer)
    elif answer["delivered"]:
        console.print(f"Delivered: {answer['status']} in {answer['seconds']:g} s.")
    else:
        stderr.print(styled(("Not delivered: ", "bold red"), one_line(str(answer["error"]))))
    if not answer["delivered"]:
        raise typer.Exit(1)


@app.command()
def enable(name: str) -> None:
    """Enable a webhook; its pending messages are sent."""
    _change(name, enabled=True)


@app.command()
def disable(name: str) -> None:
    """Disable a webhook; its pending messages wait."""
    _change(name, enabled=False)


@app.command()
def remove(name: str) -> None:
    """Remove a webhook; its pending messages are dropped."""
    with connect() as client:
        client.remove_webhook(name)
    console.print(f"{name} is removed.")


def _change(name: str, *, enabled: bool) -> None:
    with connect() as client:
        changed = client.change_webhook(name, enabled=enabled)
    console.print(f"{changed['name']} is {'enabled' if changed['enabled'] else 'disabled'}.")


def _print_secret(webhook: dict[str, Any], as_json: bool) -> None:
    """Print the secret alone on standard output, so that a script can store it."""
    if as_json:
        print_json(webhook)
        return
    stderr.print(f"{webhook['name']} → {webhook['url']}. Its secret, which is not shown again:")
    print_text(webhook["secret"])
