"""The client that commands talk to the API with."""

from __future__ import annotations

from minions import Client
from shared.settings import get_settings


def connect() -> Client:
    """A client for the configured API, or for the running `minion up` of this installation.

    Raises:
        NotConfigured: there is no API key.
    """
    settings = get_settings()
    return Client(settings.require_api_url(), settings.require_api_key())
