"""Agents over HTTP: the list, and every version of each agent."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, Field
from sqlalchemy import Connection, RowMapping, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, TEXT

from orchestrator.api import problems
from orchestrator.api.auth import Caller
from orchestrator.api.parameters import ItemPage, NamedPage, Namespace, Statements, Text
from shared.access.actors import Key
from shared.access.roles import MASK, Permission
from shared.access.scope import Scope
from shared.contracts.documents import content_in_order
from shared.errors import UnknownAgent
from shared.suggestions import similar_agents
from shared.tasks.queries import Page, page_of

LIST = text(
    "SELECT a.id, a.namespace, a.name, a.status, a.status_reason, a.created_at, v.number AS version, "
    "v.created_at AS version_created_at, v.type, v.description, v.capabilities, v.definition->>'model' AS model "
    "FROM agents a JOIN agent_versions v ON v.id = a.active_version_id "
    "WHERE a.namespace = :namespace AND a.name > :after AND (:agents = '{}' OR a.name = ANY(:agents)) "
    "AND (:capabilities = '{}' OR v.capabilities && :capabilities) ORDER BY a.name LIMIT :most"
).bindparams(bindparam("agents", type_=ARRAY(TEXT)), bindparam("capabilities", type_=ARRAY(TEXT)))
GET = text(
    "SELECT a.id, a.namespace, a.name, a.status, a.status_reason, a.created_at, v.number AS version, "
    "v.created_at AS version_created_at, v.type, v.description, v.capabilities, v.definition->>'model' AS model, "
    "v.definition, v.key_order FROM agents a JOIN agent_versions v ON v.id = a.active_version_id "
    "WHERE a.namespace = :namespace AND a.name = :name"
)
VERSIONS = text(
    "SELECT id, number, checksum, created_at FROM agent_versions WHERE agent_id = :agent ORDER BY number DESC"
)

CONTRACT = ("name", "type", "description", "input_schema", "output_schema")

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
def list_agents(query: NamedPage, database: Statements, key: Caller) -> Page:
    """All agents, by name."""
    values = {
        "namespace": query.namespace,
        "agents": list(key.scope.agents),
        "capabilities": list(key.scope.capabilities),
        "after": query.cursor,
        "most": query.limit + 1,
    }
    with database.connect() as connection:
        return page_of(connection.execute(LIST, values).mappings().all(), query.limit, "name")


@router.get("/{name}", response_model=Agent, responses=problems.documented(404))
def get_agent(name: Text, query: Namespace, database: Statements, key: Caller) -> dict[str, Any]:
    """One agent: its definition and its versions. A key without the permission `definitions:read` sees only the
    schemas of the definition."""
    with database.connect() as connection:
        row = connection.execute(GET, {"namespace": query.namespace, "name": name}).mappings().one_or_none()
        if row is None or not _reaches(key.scope, row):
            similar = "" if key.scope.is_partial else similar_agents(connection, query.namespace, name)
            raise UnknownAgent(f"There is no agent named {name!r}. `minion agents` lists them.{similar}")
        definition = _shown(content_in_order(row["definition"], row["key_order"]), key)
        versions = list(connection.execute(VERSIONS, {"agent": row["id"]}).mappings())
        return {**row, "definition": definition, "versions": versions}


def is_reached(connection: Connection, scope: Scope, namespace: str, name: str) -> bool:
    """Return whether there is an agent of that name and a scope reaches it."""
    row = connection.execute(GET, {"namespace": namespace, "name": name}).mappings().one_or_none()
    return row is not None and _reaches(scope, row)


def _reaches(scope: Scope, agent: RowMapping) -> bool:
    agents, capabilities = scope.agents, scope.capabilities
    return (not agents or agent["name"] in agents) and (
        not capabilities or not set(capabilities).isdisjoint(agent["capabilities"])
    )


def _shown(definition: dict[str, Any], key: Key) -> dict[str, Any]:
    """Return what the key may see of a definition: prompts are payloads."""
    if not key.may(Permission.DEFINITIONS_READ):
        return {name: value for name, value in definition.items() if name in CONTRACT}
    if definition.get("system_prompt") and not key.may(Permission.PAYLOADS_READ):
        return {**definition, "system_prompt": MASK}
    return definition
