"""`minion sessions`: logins of browsers."""

from __future__ import annotations

import typer

from orchestrator.commands.client import ACTOR, connect
from orchestrator.commands.output import AS_JSON, console, local_time, print_json, print_table

app = typer.Typer(help="Manage logins of browsers: list, revoke.", invoke_without_command=True)


def register(commands: typer.Typer) -> None:
    """Add the commands."""
    commands.add_typer(app, name="sessions")


@app.callback()
def _default(context: typer.Context, as_json: bool = AS_JSON) -> None:
    if context.invoked_subcommand is None:
        list_sessions(everything=False, as_json=as_json)


@app.command("list")
def list_sessions(
    everything: bool = typer.Option(False, "--all", help="Also logins that are over, for a week."),
    as_json: bool = AS_JSON,
) -> None:
    """List the logins of browsers."""
    with connect() as client:
        found = list(client.sessions(ended=everything))
    if as_json:
        print_json(found)
        return
    print_table(
        ("id", "user", "role", "status", "namespace", "since", "last used", "until", "address", "browser"),
        (
            (
                s["id"],
                s["user"],
                s["role"],
                s["status"],
                s["namespace"],
                local_time(s["created_at"]),
                local_time(s["last_used_at"]),
                local_time(s["expires_at"]),
                s["address"],
                s["user_agent"],
            )
            for s in found
        ),
        empty="No open logins.",
    )


@app.command()
def revoke(
    session: str | None = typer.Argument(None, metavar="[SESSION]", help="The login's id."),
    user: str | None = typer.Option(None, help="End all logins of this user: oidc:alice@example.com, key:ci."),
    actor: str | None = ACTOR,
    as_json: bool = AS_JSON,
) -> None:
    """End a login, or all logins of a user, within a second everywhere."""
    if (session is None) == (user is None):
        raise typer.BadParameter("name either a session or a --user")
    with connect(actor) as client:
        if session is not None:
            ended = client.revoke_session(session)
            line = f"The login of {ended['user']} is ended."
        else:
            ids = client.revoke_sessions_of(str(user))
            ended = {"ended": ids}
            line = f"1 login of {user} is ended." if len(ids) == 1 else f"{len(ids)} logins of {user} are ended."
    if as_json:
        print_json(ended)
        return
    console.print(line)
