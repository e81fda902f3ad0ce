"""MCP servers whose tools agents use, over HTTP."""

from __future__ import annotations

from datetime import datetime

from fastapi import APIRouter
from pydantic import BaseModel, Field
from sqlalchemy import text

from orchestrator.api.parameters import ItemPage, NamedPage, Statements
from shared.tasks.queries import Page, page_of

# The query of an address may have a credential.
LIST = text(
    """
    SELECT s.name, s.namespace, v.number AS version, v.checksum, v.definition->>'description' AS description,
           split_part(v.definition->>'url', '?', 1) AS url, v.definition->>'stdio' AS stdio,
           (v.definition->>'trusted')::boolean AS trusted, s.created_at, v.created_at AS version_created_at,
           ARRAY(SELECT k.name FROM tools t JOIN tool_versions k ON k.id = t.active_version_id
                     JOIN mcp_server_versions u ON u.id = k.mcp_server_version_id
                     WHERE u.mcp_server_id = s.id ORDER BY k.name) AS tools
        FROM mcp_servers s JOIN mcp_server_versions v ON v.id = s.active_version_id
        WHERE s.namespace = :namespace AND s.name > :after ORDER BY s.name LIMIT :most
    """
)

router = APIRouter(prefix="/v1/mcp-servers", tags=["mcp-servers"])


class McpServerSummary(BaseModel):
    """A server as its active version describes it."""

    name: str
    namespace: str
    version: int
    url: str | None = Field(description="Its address, without the query; null: it is a program.")
    stdio: str | None = Field(description="The program, as the operators of workers name it.")
    trusted: bool = Field(description="Effects of its tools follow from its annotations.")
    tools: list[str] = Field(description="Names of the tools that were pulled from it.")
    checksum: str = Field(description="SHA-256.")
    description: str
    created_at: datetime
    version_created_at: datetime


@router.get("", response_model=ItemPage[McpServerSummary])
def list_mcp_servers(query: NamedPage, database: Statements) -> Page:
    """All MCP servers, by name."""
    values = {"namespace": query.namespace, "after": query.cursor, "most": query.limit + 1}
    with database.connect() as connection:
        return page_of(connection.execute(LIST, values).mappings().all(), query.limit, "name")
