"""Tools and MCP servers: the lists; and one tool with its definition, versions, and the agents that use it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import Connection, text

from orchestrator.api import mcp_servers
from orchestrator.api import tools as api
from orchestrator.api.parameters import NamedPage, NamedPageQuery, Namespace, Text, in_namespace
from orchestrator.pages.access import Reading
from orchestrator.pages.definitions import VERSIONS, VersionsQuery, difference, text_of
from orchestrator.pages.rendering import Page, raw, render

MOST_USERS = 50
MOST_SERVERS = 50
TARGETS = {"function": "/functions", "agent": "/agents"}
# Only the newest version that each agent has pinned: its active one.
AGENTS = text(
    """
    SELECT a.name, v.number AS version, u.number AS tool_version
        FROM agents a JOIN agent_versions v ON v.id = a.active_version_id CROSS JOIN LATERAL (
            SELECT t.number FROM tool_versions t WHERE t.id = v.tool_version_id AND t.tool_id = :tool
            UNION SELECT t.number FROM agent_version_tools l JOIN tool_versions t ON t.id = l.tool_version_id
                WHERE l.agent_version_id = v.id AND t.tool_id = :tool) AS u
        WHERE a.namespace = :namespace ORDER BY a.name LIMIT :most
    """
)

router = APIRouter(route_class=Page, include_in_schema=False)

ToolQuery = Annotated[VersionsQuery, Depends(in_namespace(VersionsQuery))]


@router.get("/tools")
def list_tools(query: NamedPage, request: Request, database: Reading) -> Response:
    """Tools and MCP servers, by name."""
    page = api.list_tools(query, database)
    servers = NamedPageQuery(namespace=query.namespace, limit=MOST_SERVERS)
    return render(
        request,
        "tools.html",
        namespace=query.namespace,
        tools=page.items,
        next=page.next,
        is_first=not query.cursor,
        servers=None if query.cursor else mcp_servers.list_mcp_servers(servers, database),
    )


@router.get("/tools/{name}")
def show_tool(name: Text, query: ToolQuery, request: Request, database: Reading) -> Response:
    """One tool."""
    tool = api.get_tool(name, query, database)
    with database.connect() as connection:
        found = None
        if query.a is not None:
            a, b = query.a, query.b or tool["version"]
            found = difference(a, _text(connection, tool, a), b, _text(connection, tool, b))
        users = {"namespace": tool["namespace"], "tool": tool["id"], "most": MOST_USERS}
        agents = connection.execute(AGENTS, users).mappings().all()
    target = tool["definition"].get(tool["type"])
    return render(
        request,
        "tool.html",
        namespace=tool["namespace"],
        tool=tool,
        definition=text_of("tool", name, tool["definition"]),
        target=target.partition("@")[0] if isinstance(target, str) else None,
        target_page=TARGETS.get(tool["type"]),
        versions=tool["versions"][:VERSIONS],
        difference=found,
        agents=agents,
    )


@router.get("/tools/{name}/raw")
def show_definition(name: Text, query: Namespace, database: Reading) -> Response:
    """The whole definition of the active version."""
    return raw(text_of("tool", name, api.get_tool(name, query, database)["definition"]))


def _text(connection: Connection, tool: dict[str, Any], number: int) -> str:
    return text_of("tool", tool["name"], api.definition_of(connection, tool, number))
