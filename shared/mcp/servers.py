"""Clients of the servers that definitions name, with the secrets of the definition's namespace."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from shared.contracts.documents import McpServerDefinition, stored_definition
from shared.database.connections import persistently
from shared.errors import NotFound
from shared.mcp.authorization import ClientCredentials
from shared.mcp.client import McpClient
from shared.mcp.eras import Era
from shared.mcp.http import Authorization, FixedHeaders, HttpTransport
from shared.mcp.stdio import PROCESSES, StdioTransport
from shared.secret_store import fill, fill_headers, references, values_of
from shared.settings import get_settings

VERSION = text("SELECT name, definition, key_order FROM mcp_server_versions WHERE id = :id")


def connect(
    server: McpServerDefinition, namespace: str, era: Era, capabilities: Mapping[str, Any] | None = None
) -> McpClient:
    """Return a client of a server, for one call within the server's time limit. Nothing is sent yet.

    Raises:
        NotFound, NotConfigured: a secret is missing, or cannot be decrypted or sent.
    """
    if server.stdio is not None:
        return _process(server, server.stdio, namespace, capabilities or {})
    transport = HttpTransport(
        str(server.url),
        get_settings(),
        seconds=server.timeout,
        max_bytes=server.max_bytes,
        authorization=_authorization(server, namespace),
    )
    return McpClient(transport, era, capabilities)


def secrets_of(server: McpServerDefinition) -> set[str]:
    """Return the names of the secrets that a definition refers to."""
    oauth = [server.oauth.client_secret] if server.oauth else []
    return references([*server.headers.values(), *oauth])


def _process(server: McpServerDefinition, name: str, namespace: str, capabilities: Mapping[str, Any]) -> McpClient:
    """Return a client of a server that is a process of this machine."""
    start = partial(PROCESSES.get, name, namespace, get_settings())
    transport = StdioTransport(start, seconds=server.timeout, max_bytes=server.max_bytes)
    # No other process could ask it about its tasks.
    offered = {name: value for name, value in capabilities.items() if name != "extensions"}
    return McpClient(transport, transport.process.era, offered)


def _authorization(server: McpServerDefinition, namespace: str) -> Authorization:
    secrets = _secrets(server, namespace)
    headers = fill_headers(server.headers, secrets)
    if server.oauth is None:
        return FixedHeaders(headers, secrets.values())
    secret = fill(server.oauth.client_secret, secrets)
    return ClientCredentials(server.oauth, str(server.url), secret, get_settings(), headers, secrets.values())


def version_of(connection: Connection, id: UUID) -> McpServerDefinition:
    """Return the stored version of a server's definition.

    Raises:
        NotFound: there is none.
        UnreadableDefinition: another release wrote it.
    """
    row = connection.execute(VERSION, {"id": id}).one_or_none()
    if row is None:
        raise NotFound(f"There is no version {id} of an MCP server.")
    server: McpServerDefinition = stored_definition("mcp_server", row.name, row.definition, row.key_order)
    return server


def _secrets(server: McpServerDefinition, namespace: str) -> dict[str, str]:
    names = secrets_of(server)
    return persistently(values_of, names, namespace) if names else {}
