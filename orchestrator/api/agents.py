"""Agents over HTTP: the list, and every version of each agent."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, Field
from sqlalchemy import text

from orchestrator.api import problems
from orchestrator.api.parameters import ItemPage, NamedPage, Namespace, Statements, Text
from shared.contracts.documents import content_in_order
from shared.errors import UnknownAgent
from shared.suggestions import similar_agents
from shared.tasks.queries import Page, page_of

LIST = text(
    "SELECT a.id, a.namespace, a.name, a.status, a.status_reason, a.created_at, v.number AS version, "
    "v.created_at AS version_created_at, v.type, v.description, v.capabilities, v.definition->>'model' AS model "
    "FROM agents a JOIN agent_versions v ON v.id = a.active_version_id "
    "WHERE a.namespace = :namespace AND a.name > :after ORDER BY a.name LIMIT :most"
)
GET = text(
    "SELECT a.id, a.namespace, a.name, a.status, a.status_reason, a.created_at, v.number AS version, "
    "v.created_at AS version_created_at, v.type, v.description, v.capabilities, v.definition->>'model' AS model, "
    "v.definition, v.key_order FROM agents a JOIN agent_versions v ON v.id = a.active_version_id "
    "WHERE a.namespace = :namespace AND a.name = :name"
)
VERSIONS = text(
    "SELECT id, number, checksum, created_at FROM agent_versions WHERE agent_id = :agent ORDER BY number DESC"
)

router = APIRouter(prefix="/v1/agents", tags=["agents"])


class AgentSummary(BaseModel):
    """An agent as its active version describes it."""

    name: str
    namespace: str
    status: str = Field(description="active, deprecated, disabled (accepts no tasks) or rolled_back.")
    status_reason: str | None
    version: int
    type: str
    description: str
    capabilities: list[str]
    model: str | None
    created_at: datetime
    version_created_at: datetime


class AgentVersionSummary(BaseModel):
    """One immutable version."""

    id: UUID
    number: int
    checksum: str
    created_at: datetime


class Agent(AgentSummary):
    """An agent with its definition and its versions, the newest first."""

    definition: dict[str, Any]
    versions: list[AgentVersionSummary]


@router.get("", response_model=ItemPage[AgentSummary])
def list_agents(query: NamedPage, database: Statements) -> Page:
    """All agents, by name."""
    values = {"namespace": query.namespace, "after": query.cursor, "most": query.limit + 1}
    with database.connect() as connection:
        return page_of(connection.execute(LIST, values).mappings().all(), query.limit, "name")


@router.get("/{name}", response_model=Agent, responses=problems.documented(404))
def get_agent(name: Text, query: Namespace, database: Statements) -> dict[str, Any]:
    """One agent: its definition and its versions."""
    with database.connect() as connection:
        row = connection.execute(GET, {"namespace": query.namespace, "name": name}).mappings().one_or_none()
        if row is None:
            similar = similar_agents(connection, query.namespace, name)
            raise UnknownAgent(f"There is no agent named {name!r}. `minion agents` lists them.{similar}")
        definition = content_in_order(row["definition"], row["key_order"])
        versions = list(connection.execute(VERSIONS, {"agent": row["id"]}).mappings())
        return {**row, "definition": definition, "versions": versions}
