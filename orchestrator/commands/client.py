"""The API client of the commands."""

from __future__ import annotations

import typer

from minions import Client
from shared.settings import get_settings

ACTOR = typer.Option(
    None, "--as", metavar="NAME", envvar="MINION_ACTOR", help="Your name for the record, where it is shown as a claim."
)


def connect(actor: str | None = None, *, retries: int | None = None) -> Client:
    """Return a client for the configured API, or for the running `minion up` of this installation.

    Args:
        actor: the name of the actor, for the record.
        retries: how often a request is repeated if the API cannot be reached; None: the client's own number.

    Raises:
        NotConfigured: there is no API key.
    """
    settings = get_settings()
    given = {} if retries is None else {"retries": retries}
    return Client(settings.require_api_url(), settings.require_api_key(), actor=actor, **given)
