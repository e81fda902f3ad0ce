"""`minion keys`: API keys, and what each role may do."""

from __future__ import annotations

from typing import Any

import typer

from orchestrator.api.rights import matrix
from orchestrator.commands.client import ACTOR, connect
from orchestrator.commands.durations import seconds_of
from orchestrator.commands.output import AS_JSON, console, local_time, print_json, print_table, print_text, stderr
from shared.access.roles import Role

app = typer.Typer(help="Manage API keys: list, create, show, rotate, revoke, roles.", invoke_without_command=True)
KEY = typer.Argument(metavar="KEY", help="The key's name, its prefix or its id.")
EXPIRES = typer.Option(None, "--expires", metavar="DURATION", help="When the key expires, from now: 12h, 90d.")


def register(commands: typer.Typer) -> None:
    """Add the commands."""
    commands.add_typer(app, name="keys")


@app.callback()
def _default(context: typer.Context, as_json: bool = AS_JSON) -> None:
    if context.invoked_subcommand is None:
        list_keys(everything=False, as_json=as_json)


@app.command("list")
def list_keys(
    everything: bool = typer.Option(False, "--all", help="Also revoked keys."), as_json: bool = AS_JSON
) -> None:
    """List keys. Their texts are never shown."""
    with connect() as client:
        found = list(client.api_keys(revoked=everything))
    if as_json:
        print_json(found)
        return
    print_table(
        ("key", "prefix", "role", "status", "payloads", "bound to", "per minute", "expires", "last used", "created by"),
        (
            (
                k["name"],
                k["prefix"],
                k["role"],
                k["status"],
                "yes" if k["payloads"] else "no",
                _bounds(k),
                k["requests_per_minute"],
                local_time(k["expires_at"]),
                local_time(k["last_used_at"]),
                k["created_by"],
            )
            for k in found
        ),
        empty="No keys but the administrator's. `minion keys create NAME --role ROLE` creates one.",
    )


@app.command()
def create(
    name: str = typer.Argument(help="The key's name in records."),
    role: Role = typer.Option(help="What the key may do; `minion keys roles` shows it."),
    payloads: bool | None = typer.Option(
        None,
        "--payloads/--no-payloads",
        help="Whether it sees inputs, outputs, prompts and errors; by default as the role.",
    ),
    namespace: str | None = typer.Option(None, help="The only namespace that it reaches."),
    agent: list[str] = typer.Option([], "--agent", "-a", help="The only agent that it reaches; may be repeated."),
    capability: list[str] = typer.Option(
        [], "--capability", "-c", help="The only capability that it reaches; may be repeated."
    ),
    tenant: str | None = typer.Option(
        None, help="The only tenant key that it reaches; 'acme:*' for all that begin with acme:."
    ),
    requests_per_minute: int | None = typer.Option(
        None, min=1, help="How many requests it may send to each orchestrator in a minute; by default, any number."
    ),
    expires: str | None = EXPIRES,
    actor: str | None = ACTOR,
    as_json: bool = AS_JSON,
) -> None:
    """Create a key and show its text, this once."""
    with connect(actor) as client:
        created = client.create_api_key(
            name,
            role,
            payloads=payloads,
            namespace=namespace,
            agents=agent,
            capabilities=capability,
            tenant=tenant,
            requests_per_minute=requests_per_minute,
            expires_in=_lifetime(expires),
        )
    _print_text(created, as_json)


@app.command()
def show(key: str = KEY) -> None:
    """Show a key as JSON, without its text."""
    with connect() as client:
        print_json(client.api_key(key))


@app.command()
def rotate(
    key: str = KEY,
    overlap: str = typer.Option("1d", metavar="DURATION", help="How long the previous text stays valid: 0s, 12h, 7d."),
    expires: str | None = EXPIRES,
    actor: str | None = ACTOR,
    as_json: bool = AS_JSON,
) -> None:
    """Give a key a new text and show it, this once. The previous one stays valid for the overlap."""
    with connect(actor) as client:
        rotated = client.rotate_api_key(key, overlap=seconds_of(overlap, "--overlap"), expires_in=_lifetime(expires))
    _print_text(rotated, as_json)


@app.command()
def revoke(key: str = KEY, actor: str | None = ACTOR, as_json: bool = AS_JSON) -> None:
    """End a key, and its text before the last rotation, within a second everywhere."""
    with connect(actor) as client:
        revoked = client.revoke_api_key(key)
    if as_json:
        print_json(revoked)
        return
    console.print(f"{revoked['name']} ({revoked['prefix']}…) is revoked.")


@app.command()
def roles(as_json: bool = AS_JSON) -> None:
    """Show which role may use which endpoint."""
    rows = list(matrix())
    if as_json:
        print_json(
            [{"endpoint": endpoint, "permissions": needed, "roles": allowed} for endpoint, needed, allowed in rows]
        )
        return
    print_table(
        ("endpoint", "permissions", *Role),
        (
            (endpoint, ", ".join(needed), *("yes" if role in allowed else "-" for role in Role))
            for endpoint, needed, allowed in rows
        ),
        empty="",
    )


def _lifetime(expires: str | None) -> float | None:
    return None if expires is None else seconds_of(expires, "--expires")


def _bounds(key: dict[str, Any]) -> str:
    bounds = [
        *([f"namespace {key['namespace']}"] if key["namespace"] else []),
        *(f"agent {name}" for name in key["agents"]),
        *(f"capability {name}" for name in key["capabilities"]),
        *([f"tenant {key['tenant']}"] if key["tenant"] else []),
    ]
    return ", ".join(bounds) or "nothing"


def _print_text(key: dict[str, Any], as_json: bool) -> None:
    """Print the text alone on standard output, so that a script can store it."""
    if as_json:
        print_json(key)
        return
    stderr.print(f"{key['name']} ({key['role']}), bound to {_bounds(key)}. The key, which is not shown again:")
    print_text(key["key"])
