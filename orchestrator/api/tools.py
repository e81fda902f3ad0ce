"""Tools over HTTP: the list, and every version of each tool."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, Field
from sqlalchemy import Connection, text

from orchestrator.api import masking, problems
from orchestrator.api.parameters import ItemPage, NamedPage, Namespace, Statements, Text
from shared.contracts.documents import content_in_order
from shared.errors import NotFound
from shared.tasks.queries import Page, page_of

COLUMNS = (
    "t.id, t.namespace, t.name, t.created_at, v.number AS version, v.checksum, v.type, v.effect, v.description, "
    "v.created_at AS version_created_at"
)
LIST = text(
    f"SELECT {COLUMNS} FROM tools t JOIN tool_versions v ON v.id = t.active_version_id "  # noqa: S608
    "WHERE t.namespace = :namespace AND t.name > :after ORDER BY t.name LIMIT :most"
)
GET = text(
    f"SELECT {COLUMNS}, v.definition, v.key_order "  # noqa: S608
    "FROM tools t JOIN tool_versions v ON v.id = t.active_version_id "
    "WHERE t.namespace = :namespace AND t.name = :name"
)
VERSIONS = text("SELECT id, number, checksum, created_at FROM tool_versions WHERE tool_id = :tool ORDER BY number DESC")
VERSION = text("SELECT definition, key_order FROM tool_versions WHERE tool_id = :tool AND number = :number")

router = APIRouter(prefix="/v1/tools", tags=["tools"])


class ToolSummary(BaseModel):
    """A tool as its active version describes it."""

    name: str
    namespace: str
    version: int
    type: str = Field(description="What it calls: function, http, agent, builtin.")
    effect: str = Field(description="pure, idempotent or unsafe.")
    checksum: str = Field(description="SHA-256.")
    description: str
    created_at: datetime
    version_created_at: datetime


class ToolVersionSummary(BaseModel):
    """One immutable version."""

    id: UUID
    number: int
    checksum: str
    created_at: datetime


class Tool(ToolSummary):
    """A tool with its definition and its versions, the newest first."""

    definition: dict[str, Any]
    versions: list[ToolVersionSummary]


@router.get("", response_model=ItemPage[ToolSummary])
def list_tools(query: NamedPage, database: Statements) -> Page:
    """All tools, by name."""
    values = {"namespace": query.namespace, "after": query.cursor, "most": query.limit + 1}
    with database.connect() as connection:
        return page_of(connection.execute(LIST, values).mappings().all(), query.limit, "name")


@router.get("/{name}", response_model=Tool, responses=problems.documented(404))
def get_tool(name: Text, query: Namespace, database: Statements) -> dict[str, Any]:
    """One tool: its definition and its versions. The values of HTTP headers are payloads."""
    with database.connect() as connection:
        row = connection.execute(GET, {"namespace": query.namespace, "name": name}).mappings().one_or_none()
        if row is None:
            raise NotFound(f"There is no tool named {name!r}. `minion export --kind tool` prints all.")
        definition = _shown(content_in_order(row["definition"], row["key_order"]))
        versions = list(connection.execute(VERSIONS, {"tool": row["id"]}).mappings())
        return {**row, "definition": definition, "versions": versions}


def definition_of(connection: Connection, tool: dict[str, Any], number: int) -> dict[str, Any]:
    """Return what the caller may see of the definition in a version of a tool.

    Raises:
        NotFound: the tool has no such version.
    """
    found = connection.execute(VERSION, {"tool": tool["id"], "number": number}).one_or_none()
    if found is None:
        raise NotFound(f"The tool {tool['name']!r} has no version {number}.")
    return _shown(content_in_order(found.definition, found.key_order))


def _shown(definition: dict[str, Any]) -> dict[str, Any]:
    """Return a definition with masked values of HTTP headers: a tool may have a credential there."""
    http = definition.get("http")
    if not isinstance(http, dict) or not isinstance(headers := http.get("headers"), dict):
        return definition
    shown = {name: masking.payload(value) for name, value in headers.items()}
    return {**definition, "http": {**http, "headers": shown}}
