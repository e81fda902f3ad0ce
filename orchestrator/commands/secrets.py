"""`minion secrets`: confidential values for tools, and a namespace's own keys for providers of models."""

from __future__ import annotations

import sys

import typer

from orchestrator.commands.output import AS_JSON, console, print_json, print_table, print_text
from shared.errors import InvalidInput
from shared.providers import OWN_KEY
from shared.settings import get_settings

app = typer.Typer(help="Manage the secrets that tools refer to by name: set, list, delete, key.", no_args_is_help=True)
NAMESPACE = typer.Option("default", "--namespace", help="The namespace of the secret.")
NAME = typer.Argument(help="The secret's name.")


def register(commands: typer.Typer) -> None:
    """Add the commands."""
    commands.add_typer(app, name="secrets")


@app.command("set")
def set_secret(name: str = NAME, namespace: str = NAMESPACE) -> None:
    """Store a secret. Its value is read from standard input, or from a prompt."""
    from shared import secret_store
    from shared.access.actors import local_actor
    from shared.audit import log
    from shared.database.connections import transaction
    from shared.database.schema import wait_for_database
    from shared.secret_store import SecretStore

    store = SecretStore(get_settings(), namespace)
    value = typer.prompt("Value", hide_input=True) if sys.stdin.isatty() else _piped()
    wait_for_database(get_settings())
    with transaction() as connection:
        before = secret_store.times_of(connection, [name], namespace)
        store.set(connection, name, value)
        after = {"replaced_one_of": before[name]} if before else None
        log.record(connection, local_actor(), "secret.set", name, namespace=store.namespace, after=after)
    console.print(f"The secret {name} is stored. {_use(name, namespace)}")


def _use(name: str, namespace: str) -> str:
    if not name.startswith(OWN_KEY):
        return f"A tool's header refers to it as ${{secret:{name}}}."
    provider = name.removeprefix(OWN_KEY)
    return f"Within half a minute, the namespace {namespace} calls the provider {provider} with this key."


def _piped() -> str:
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"The secret on standard input is not UTF-8 text (byte {error.start}). Encode it, for example with "
            "`base64`."
        ) from None


@app.command("list")
def list_secrets(as_json: bool = AS_JSON, namespace: str = NAMESPACE) -> None:
    """List the names of secrets. Values are never shown."""
    from shared import secret_store
    from shared.database.connections import transaction
    from shared.database.schema import wait_for_database

    wait_for_database(get_settings())
    with transaction() as connection:
        found = secret_store.list_secrets(connection, namespace)
    if as_json:
        print_json(found)
        return
    rows = ((secret["name"], secret["created_at"], secret["updated_at"]) for secret in found)
    print_table(("name", "created", "changed"), rows, empty="No secrets.")


@app.command()
def delete(name: str = NAME, namespace: str = NAMESPACE) -> None:
    """Remove a secret."""
    from shared import secret_store
    from shared.access.actors import local_actor
    from shared.audit import log
    from shared.database.connections import transaction
    from shared.database.schema import wait_for_database

    wait_for_database(get_settings())
    with transaction() as connection:
        secret_store.delete_secret(connection, name, namespace)
        log.record(connection, local_actor(), "secret.delete", name, namespace=namespace)
    console.print(f"The secret {name} is deleted.")


@app.command()
def key() -> None:
    """Print a new key for MINION_SECRET_KEY."""
    from shared.secret_store import new_key

    print_text(new_key())
