"""The command for MCP clients: mcp serve."""

from __future__ import annotations

import typer

from orchestrator.commands.client import ACTOR
from shared.settings import get_settings

group = typer.Typer(no_args_is_help=True, help="Model Context Protocol: agents as tools of a client.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(group, name="mcp")


@group.command()
def serve(
    namespace: str = typer.Option(None, help="The agents' namespace, for a key that is not bound to one."),
    actor: str = ACTOR,
) -> None:
    """Serve an MCP client that starts this command, over standard input and output: each agent is a tool. It needs
    the address of the API and a key, and no database.
    """
    # Imported here, because it takes a while, and no other command needs it.
    from orchestrator.mcp import stdio

    settings = get_settings()
    stdio.serve(settings.require_api_url(), settings.require_api_key(), namespace=namespace, actor=actor)
