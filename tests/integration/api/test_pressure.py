"""Overload: requests are refused or delayed with a clear error, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import httpx2
import psycopg
import pytest
from sqlalchemy import Engine

from minions import Client
from shared.settings import Settings
from tests.integration.api.conftest import Api

pytestmark = pytest.mark.usefixtures("agents")


@contextmanager
def all_connections_taken(settings: Settings) -> Iterator[None]:
    """Take all free connections."""
    url = settings.require_database_url().replace("postgresql+psycopg://", "postgresql://")
    with ExitStack() as stack:
        while True:
            try:
                stack.callback(psycopg.connect(url).close)
            except psycopg.OperationalError:
                break
        yield


def test_too_many_connections_are_a_503_and_a_retry_helps(
    http: httpx2.Client, client: Client, database: Engine, settings: Settings, http_api: Api
) -> None:
    state = http_api.app.state
    # The thread that writes counts must not open a connection in the meantime.
    with patch.object(state.refusals, "flush"), patch.object(state.key_addresses, "flush"):
        state.engine.dispose()
        with all_connections_taken(settings):
            refused = http.post("/v1/tasks", json={"agent": "Echo", "input": {}})
    assert refused.status_code == 503
    assert refused.json()["code"] == "unavailable"
    assert "Retry-After" in refused.headers
    assert client.submit("Echo", {}).state == "pending"
