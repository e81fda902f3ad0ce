"""Clients of the servers that definitions name, with the secrets of the definition's namespace."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from shared.contracts.documents import HEADER_VALUE, McpServerDefinition
from shared.database.connections import get_engine, persist
from shared.errors import NotConfigured
from shared.mcp.client import McpClient
from shared.mcp.eras import Era
from shared.mcp.http import FixedHeaders, HttpTransport
from shared.secret_store import SecretStore, fill, references
from shared.settings import get_settings

HEADER_TEXT = re.compile(HEADER_VALUE)


def connect(
    server: McpServerDefinition, namespace: str, era: Era, capabilities: Mapping[str, Any] | None = None
) -> McpClient:
    """Return a client of a server, for one call within the server's time limit. Nothing is sent yet.

    Raises:
        NotFound, NotConfigured: a secret is missing, or cannot be decrypted or sent.
    """
    secrets = _secrets(server, namespace)
    headers = {name: _header(name, fill(given, secrets)) for name, given in server.headers.items()}
    transport = HttpTransport(
        server.url,
        get_settings(),
        seconds=server.timeout,
        max_bytes=server.max_bytes,
        authorization=FixedHeaders(headers, secrets.values()),
    )
    return McpClient(transport, era, capabilities)


def _secrets(server: McpServerDefinition, namespace: str) -> dict[str, str]:
    names = references(server.headers.values())
    if not names:
        return {}
    store = SecretStore(get_settings(), namespace)

    def read() -> dict[str, str]:
        with get_engine().connect() as connection:
            return store.reveal(connection, names)

    return persist(read)


def _header(name: str, value: str) -> str:
    """Return the value if a header can hold it. The library's own error would quote it, and the secret with it."""
    if not HEADER_TEXT.fullmatch(value):
        raise NotConfigured(
            f"The header {name} cannot carry its secret, which must be printable ASCII on one line, without spaces "
            "around it. `minion secrets set NAME` stores another one."
        )
    return value
