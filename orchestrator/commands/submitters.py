"""Commands for database roles that submit tasks by SQL: grant-submit, revoke-submit, submitters."""

from __future__ import annotations

from typing import Any

import typer

from orchestrator.commands.output import AS_JSON, console, print_json, print_table
from shared.settings import get_settings

ROLE = typer.Argument(metavar="ROLE", help="The role of the database.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("grant-submit")(grant_submit)
    app.command("revoke-submit")(revoke_submit)
    app.command()(submitters)


def grant_submit(
    role: str = ROLE,
    namespace: str = typer.Option(help="The only namespace that its tasks belong to."),
    tenant: str | None = typer.Option(
        None, help="The only tenant key that its tasks have; 'acme:*' for all that begin with acme:."
    ),
    agent: list[str] = typer.Option([], "--agent", "-a", help="The only agent that it may use; may be repeated."),
    as_json: bool = AS_JSON,
) -> None:
    """Let a database role submit tasks by SQL within bounds, and do nothing else. A new role is created."""
    from shared import sql_submitters
    from shared.access.actors import local_actor
    from shared.access.scope import Scope
    from shared.audit import log
    from shared.database.connections import transaction
    from shared.database.schema import wait_for_database

    scope = Scope(namespace=namespace, agents=tuple(dict.fromkeys(agent)), tenant=tenant)
    wait_for_database(get_settings())
    with transaction() as connection:
        granted = sql_submitters.grant(connection, role, scope)
        after = {**_as_json(scope), "created": granted.created}
        log.record(
            connection, local_actor(), "submitter.grant", role, namespace=namespace, before=granted.before, after=after
        )
    if as_json:
        print_json({"role": role, "created": granted.created, **_as_json(scope)})
        return
    console.print(f"{role} may submit tasks by SQL: {_bounds(_as_json(scope))}.")
    if granted.created:
        console.print(f"The role is new and has no password: `\\password {role}` in psql sets one.")


def revoke_submit(role: str = ROLE) -> None:
    """Take the right to submit tasks by SQL from a database role. The role stays."""
    from shared import sql_submitters
    from shared.access.actors import local_actor
    from shared.audit import log
    from shared.database.connections import transaction
    from shared.database.schema import wait_for_database

    wait_for_database(get_settings())
    with transaction() as connection:
        before = sql_submitters.revoke(connection, role)
        namespace = before["namespace"] if before else None
        log.record(connection, local_actor(), "submitter.revoke", role, namespace=namespace, before=before)
    console.print(f"{role} may no longer submit tasks by SQL.")


def submitters(as_json: bool = AS_JSON) -> None:
    """List the database roles that may submit tasks by SQL, and their bounds."""
    from shared import sql_submitters
    from shared.database.connections import transaction
    from shared.database.schema import wait_for_database

    wait_for_database(get_settings())
    with transaction() as connection:
        found = sql_submitters.list_submitters(connection)
    if as_json:
        print_json(found)
        return
    print_table(
        ("role", "bound to", "since"),
        ((each["role"], _bounds(each), each["created_at"]) for each in found),
        empty="No role may submit by SQL but the owner's. `minion grant-submit ROLE --namespace NAME` lets one.",
    )


def _as_json(scope: Any) -> dict[str, Any]:
    return {"namespace": scope.namespace, "agents": list(scope.agents), "tenant": scope.tenant}


def _bounds(bounds: dict[str, Any]) -> str:
    listed = [
        *([f"namespace {bounds['namespace']}"] if bounds["namespace"] else []),
        *(f"agent {name}" for name in bounds["agents"]),
        *([f"tenant {bounds['tenant']}"] if bounds["tenant"] else []),
    ]
    return ", ".join(listed) or "nothing"
