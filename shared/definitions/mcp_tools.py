"""Tools of an MCP server as definitions: what a pull would store, compared with what is stored.

A stored tool is what a person pulled. A server that changes its tools changes no prompt: the next pull makes a new
version of the tool, by a person's act.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.contracts.documents import (
    McpCall,
    McpServerDefinition,
    ToolDefinition,
    parse_definition,
    stored_definition,
)
from shared.errors import InvalidDefinition, NotFound, Unavailable
from shared.mcp.eras import Era
from shared.mcp.faults import McpFault
from shared.mcp.listing import ListedTool, list_tools
from shared.mcp.resource_metadata import authorization_servers
from shared.mcp.servers import connect
from shared.settings import get_settings

State = Literal["new", "changed", "same", "gone", "unusable"]

LONGEST_NAME = 64
NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")
KEPT = ("effect", "approval", "approval_timeout", "cache", "strict", "defer_loading")
"""Settings of a stored tool that a pull keeps. The effect is kept if a person set it."""
SERVER = text(
    "SELECT v.definition, v.key_order FROM mcp_servers s JOIN mcp_server_versions v ON v.id = s.active_version_id "
    "WHERE s.namespace = :namespace AND s.name = :name"
)
SERVERS = text(
    """
    SELECT s.name, v.number AS version, (v.definition->>'trusted')::boolean AS trusted,
           COALESCE(v.definition->>'url', 'stdio:' || (v.definition->>'stdio')) AS url,
           (SELECT count(*) FROM tools t JOIN tool_versions k ON k.id = t.active_version_id
                JOIN mcp_server_versions u ON u.id = k.mcp_server_version_id WHERE u.mcp_server_id = s.id) AS tools
        FROM mcp_servers s JOIN mcp_server_versions v ON v.id = s.active_version_id
        WHERE s.namespace = :namespace ORDER BY s.name
    """
)
EVERY_SERVER = text(
    "SELECT s.namespace, s.name, v.definition, v.key_order FROM mcp_servers s "
    "JOIN mcp_server_versions v ON v.id = s.active_version_id ORDER BY s.namespace, s.name"
)
TOOLS = text(
    "SELECT v.name, v.definition, v.key_order FROM tools t JOIN tool_versions v ON v.id = t.active_version_id "
    "WHERE t.namespace = :namespace AND v.type = 'mcp' ORDER BY v.name"
)
NAMES = text("SELECT name FROM tools WHERE namespace = :namespace")


@dataclass(frozen=True, slots=True)
class PulledTool:
    """A tool of a server, as it is stored and as a pull would store it.

    Attributes:
        name: ours.
        tool: the server's name.
        before: the stored definition; None: there is none.
        after: the definition that a pull stores; None: the server no longer lists the tool, or it cannot be used.
        fault: the reason why it cannot be used.
    """

    name: str
    tool: str
    state: State
    before: ToolDefinition | None = None
    after: ToolDefinition | None = None
    fault: str | None = None

    @property
    def differs(self) -> bool:
        """Whether a stored tool is no longer what the server lists."""
        return self.before is not None and self.state != "same"


def servers(session: Session, namespace: str = "default") -> list[dict[str, Any]]:
    """Return the servers by name: `{"name", "version", "url", "trusted", "tools"}`."""
    return [dict(row) for row in session.execute(SERVERS, {"namespace": namespace}).mappings()]


def every_server(session: Session) -> list[tuple[str, McpServerDefinition]]:
    """Return the active definitions of the servers of all namespaces, each with its namespace."""
    rows = session.execute(EVERY_SERVER)
    return [(row.namespace, stored_definition("mcp_server", *row[1:])) for row in rows]


def server_named(session: Session, name: str, namespace: str = "default") -> McpServerDefinition:
    """Return the active definition of a server.

    Raises:
        NotFound: there is none of that name.
    """
    row = session.execute(SERVER, {"namespace": namespace, "name": name}).one_or_none()
    if row is None:
        raise NotFound(f"There is no MCP server {name[:100]!r}. `minion mcp list` lists them.")
    server: McpServerDefinition = stored_definition("mcp_server", name, row.definition, row.key_order)
    return server


def ask(server: McpServerDefinition, namespace: str = "default") -> list[ListedTool]:
    """Return the tools that a server lists now.

    Raises:
        Unavailable: it cannot be reached, or its list cannot be read.
        NotFound, NotConfigured: a secret is missing.
    """
    try:
        with connect(server, namespace, Era()) as client:
            try:
                return list_tools(client)
            finally:
                client.end_session()
    except McpFault as fault:
        why = f"The MCP server {server.name!r}: {fault.message.rstrip('.')}."
        written = f" The end of its standard error:\n{fault.written}" if fault.written else ""
        raise Unavailable(why + _advice(server, fault) + written, **fault.detail) from None


def _advice(server: McpServerDefinition, fault: McpFault) -> str:
    """Return what a definition lacks, if a server refused a request for its credentials."""
    if fault.detail.get("status") != 401 or server.oauth is not None or server.url is None:
        return ""
    issuers = authorization_servers(server.url, get_settings())
    return f" Its authorization server is {' or '.join(issuers)}: set `oauth` in its definition." if issuers else ""


def compare(
    session: Session,
    server: McpServerDefinition,
    listed: Sequence[ListedTool],
    *,
    namespace: str = "default",
    only: Iterable[str] = (),
) -> list[PulledTool]:
    """Compare the tools that a server lists with the stored ones, by their names.

    Args:
        only: names of tools, the server's or ours; none: all.

    Raises:
        NotFound: there is no tool of a name in `only`.
    """
    rows = session.execute(TOOLS, {"namespace": namespace}).all()
    every: list[ToolDefinition] = [stored_definition("tool", *row) for row in rows]
    stored = [tool for tool in every if tool.mcp is not None and _bare(tool.mcp.server) == server.name]
    taken = set(session.scalars(NAMES, {"namespace": namespace}))
    found = [pulled for tool in listed for pulled in _pulled(tool, server, stored, taken)]
    names = {tool.name for tool in listed}
    found += [
        PulledTool(tool.name, tool.mcp.tool, "gone", before=tool)
        for tool in stored
        if tool.mcp is not None and tool.mcp.tool not in names
    ]
    wanted = set(only)
    if missing := wanted - {name for each in found for name in (each.name, each.tool)}:
        raise NotFound(f"The MCP server {server.name!r} has no tool {min(missing)[:200]!r}.")
    chosen = [each for each in found if not wanted or wanted & {each.name, each.tool}]
    return sorted(chosen, key=lambda each: each.name)


def _pulled(
    listed: ListedTool, server: McpServerDefinition, stored: Sequence[ToolDefinition], taken: set[str]
) -> list[PulledTool]:
    """Return a listed tool as it is stored, under each of its names, or as a new one."""
    known = [tool for tool in stored if tool.mcp is not None and tool.mcp.tool == listed.name]
    if known:
        return [_changed(listed, server, before) for before in known]
    name = _name(server.name, listed.name, taken)
    taken.add(name)
    try:
        after = _definition(name, listed, server.name, {}, is_trusted=server.trusted)
    except InvalidDefinition as error:
        return [PulledTool(name, listed.name, "unusable", fault=error.message)]
    return [PulledTool(name, listed.name, "new", after=after)]


def _changed(listed: ListedTool, server: McpServerDefinition, before: ToolDefinition) -> PulledTool:
    """Return a stored tool with what the server lists now, and with the settings of its definition."""
    assert before.mcp is not None
    # A tool that pins a version of the server keeps its trust.
    is_trusted = server.trusted if before.mcp.server == server.name else before.mcp.trusted
    if before.mcp.listed == listed.digest and before.mcp.trusted == is_trusted:
        return PulledTool(before.name, listed.name, "same", before, before)
    content = before.model_dump(mode="json")
    kept = {field: content[field] for field in KEPT if content.get(field) is not None}
    if before.effect == before.mcp.effect:
        del kept["effect"]
    try:
        after = _definition(before.name, listed, before.mcp.server, kept, is_trusted=is_trusted)
    except InvalidDefinition as error:
        return PulledTool(before.name, listed.name, "unusable", before, fault=error.message)
    return PulledTool(before.name, listed.name, "changed", before, after)


def _definition(
    name: str, listed: ListedTool, server: str, kept: dict[str, Any], *, is_trusted: bool
) -> ToolDefinition:
    """Return the definition of a listed tool.

    Args:
        server: the reference to it.
        kept: settings of the stored tool.

    Raises:
        InvalidDefinition: it cannot be used.
    """
    if listed.fault is not None:
        raise InvalidDefinition(f"tool {name!r}: {listed.fault}.")
    call = McpCall(
        server=server,
        tool=listed.name,
        listed=listed.digest,
        annotations=listed.annotations,
        trusted=is_trusted,
    )
    tool = parse_definition(
        {
            "kind": "tool",
            "name": name,
            "type": "mcp",
            "description": listed.description,
            "input_schema": listed.input_schema,
            "output_schema": listed.output_schema,
            "mcp": call.model_dump(),
            **kept,
        }
    )
    assert isinstance(tool, ToolDefinition)
    return tool


def _name(server: str, tool: str, taken: set[str]) -> str:
    """Return a name for a tool: the server's and its own, with a hash if that is too long or already taken."""
    name = NOT_IN_NAMES.sub("_", f"{server}_{tool}")
    if len(name) <= LONGEST_NAME and name not in taken:
        return name
    mark = hashlib.sha256(tool.encode()).hexdigest()[:8]
    return f"{name[: LONGEST_NAME - 9]}_{mark}"


def _bare(reference: str) -> str:
    return reference.partition("@")[0]
