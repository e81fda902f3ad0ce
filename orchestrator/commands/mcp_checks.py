"""Findings of `minion doctor` about MCP servers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from orchestrator.commands.findings import Finding, judged
from shared.contracts.documents import McpServerDefinition
from shared.database.connections import get_engine
from shared.definitions.mcp_tools import ask, compare, every_server
from shared.errors import MinionError
from shared.mcp.listing import ListedTool

AT_ONCE = 8
PATIENCE = 10.0
"""Seconds for one server."""


def mcp_servers() -> Iterator[Finding]:
    """Yield a finding for each server: whether it answers, and whether its tools are those that were pulled."""
    with Session(get_engine()) as session:
        try:
            servers = every_server(session)
        except DBAPIError:
            # The check of the database says why.
            return
        session.rollback()
        with ThreadPoolExecutor(AT_ONCE) as threads:
            answers = list(threads.map(_asked, servers))
        for (namespace, server), listed in zip(servers, answers, strict=True):
            name = f"mcp server {server.name}"
            what = name if namespace == "default" else f"{name} in {namespace}"
            if isinstance(listed, MinionError):
                yield Finding(what, "warning", listed.message, "its tools fail until it answers")
                continue
            stored = [each for each in compare(session, server, listed, namespace=namespace) if each.before]
            differ = sum(each.differs for each in stored)
            advice = f"see what it changed: `minion mcp diff {server.name}`" if differ else ""
            yield judged(what, f"{len(stored)} tools stored, {differ} differ from its list", warning=advice)


def _asked(server: tuple[str, McpServerDefinition]) -> list[ListedTool] | MinionError:
    namespace, definition = server
    try:
        return ask(definition.model_copy(update={"timeout": min(definition.timeout, PATIENCE)}), namespace)
    except MinionError as error:
        return error
