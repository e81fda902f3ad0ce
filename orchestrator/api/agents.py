"""Agents over HTTP: the list, every version of each agent, and the way back to an earlier one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, RowMapping, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, TEXT
from sqlalchemy.orm import Session

from orchestrator.api import body, problems
from orchestrator.api.actors import Actor
from orchestrator.api.auth import Caller
from orchestrator.api.masking import payload
from orchestrator.api.parameters import Database, ItemPage, NamedPage, Namespace, Statements, Text
from orchestrator.observe import canaries, evaluations
from shared.access.actors import Key
from shared.access.roles import MASK, Permission
from shared.access.scope import Scope
from shared.contracts.documents import content_in_order
from shared.contracts.shares import Share
from shared.errors import NotFound, UnknownAgent
from shared.registry import AgentRegistry
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
VERSION = text(
    "SELECT id, number, checksum, created_at, definition, key_order FROM agent_versions "
    "WHERE agent_id = :agent AND number = :number"
)

CONTRACT = ("name", "type", "description", "input_schema", "output_schema")

router = APIRouter(prefix="/v1/agents", tags=["agents"])


class CanarySide(BaseModel):
    """What was counted of the tasks of one version since the canary has its share."""

    tasks: int = Field(description="Ended ones, without those that were cancelled.")
    failed: int
    dollars: float
    dollars_per_task: float | None
    scores: dict[str, Any] = Field(description="By evaluator: `tasks` and `mean`.")


class CanaryFigures(BaseModel):
    """The figures of a canary, and of the version that it is compared with."""

    canary: CanarySide
    baseline: CanarySide


class Canary(BaseModel):
    """A version that gets a share of the agent's new tasks, or got it until it ended."""

    version: int
    baseline: int = Field(description="The version that gets the others.")
    share: str
    max_failures: float
    max_cost: float
    max_score_drop: float
    min_tasks: int
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None = Field(description="completed, rolled_back, ended or changed; null while it is in force.")
    reason: str | None = Field(description="null for a key that is bound to agents, capabilities or a tenant.")
    figures: CanaryFigures | None = Field(description="null for the same keys.")


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
    canary: Canary | None = Field(None, description="The canary in force; of one agent, else the last one.")


class AgentVersionSummary(BaseModel):
    """One immutable version."""

    id: UUID
    number: int
    checksum: str
    created_at: datetime
    scores: dict[str, Any] = Field(
        description="By evaluator: `tasks`, their `mean`, and the share that `passed`. "
        "Empty for a key that is bound to agents, capabilities or a tenant."
    )
    unscored: dict[str, Any] = Field(
        description="By evaluator: how many of the latest 1,000 evaluations without a score `failed` or were "
        "`skipped`, and the `problem` of the latest one. Empty for the same keys."
    )


class Agent(AgentSummary):
    """An agent with its definition and its versions, the newest first."""

    definition: dict[str, Any]
    versions: list[AgentVersionSummary]


class AgentVersion(BaseModel):
    """One immutable version with its definition."""

    id: UUID
    number: int
    checksum: str
    created_at: datetime
    definition: dict[str, Any]


class RollbackRequest(BaseModel):
    """The version to go back to."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: int = Field(ge=1, le=2**31 - 1)
    reason: str | None = Field(None, min_length=1, max_length=500)


class CanaryRequest(BaseModel):
    """The share of new tasks that a version gets, and how much worse than the active version it may be. Fields that are
    left out are as before, or have their defaults."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: int = Field(ge=1, le=2**31 - 1)
    share: Share = Field(description="A percentage: `10%`. 100% makes it the active version.")
    max_failures: float | None = Field(None, ge=0, le=1, description="0.05: five percentage points more failed tasks.")
    max_cost: float | None = Field(None, ge=0, le=1000, description="0.5: a task costs half as much again.")
    max_score_drop: float | None = Field(None, ge=0, le=1, description="0.1: an evaluator's mean score is 0.1 lower.")
    min_tasks: int | None = Field(None, ge=5, le=1_000_000)
    reason: str | None = Field(None, min_length=1, max_length=500)


class AgentStatusRequest(BaseModel):
    """The new status of an agent."""

    model_config = ConfigDict(extra="forbid", strict=True)

    status: Literal["active", "deprecated", "disabled"]
    reason: str | None = Field(None, min_length=1, max_length=500)


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
        page = page_of(connection.execute(LIST, values).mappings().all(), query.limit, "name")
        found = _canaries(connection, [agent["id"] for agent in page.items], key)
    in_force = {agent: canary for agent, canary in found.items() if canary["ended_at"] is None}
    return replace(page, items=[{**agent, "canary": in_force.get(agent["id"])} for agent in page.items])


@router.get("/{name}", response_model=Agent, responses=problems.documented(404))
def get_agent(name: Text, query: Namespace, database: Statements, key: Caller) -> dict[str, Any]:
    """One agent: its definition and its versions. A key without the permission `definitions:read` sees only the
    schemas of the definition."""
    with database.connect() as connection:
        row = _head(connection, query.namespace, name, key.scope)
        definition = _shown(content_in_order(row["definition"], row["key_order"]), key)
        versions = _scored(connection, connection.execute(VERSIONS, {"agent": row["id"]}).mappings().all(), key)
        canary = _canaries(connection, [row["id"]], key).get(row["id"])
        return {**row, "definition": definition, "versions": versions, "canary": canary}


@router.get(
    "/{name}/versions/{number}",
    name="get_agent_version",
    response_model=AgentVersion,
    responses=problems.documented(404),
)
def get_version(
    name: Text,
    number: Annotated[int, Path(ge=1, le=2**31 - 1)],
    query: Namespace,
    database: Statements,
    key: Caller,
) -> dict[str, Any]:
    """One version of an agent, active or not, with its definition. A key without the permission `definitions:read` sees
    only the schemas of the definition."""
    with database.connect() as connection:
        row = _version(connection, _head(connection, query.namespace, name, key.scope), number)
        return {**row, "definition": _shown(content_in_order(row["definition"], row["key_order"]), key)}


@router.post(
    "/{name}/rollback",
    name="roll_back_agent",
    response_model=Agent,
    responses=problems.documented(404, 413, 415),
    openapi_extra=body.documented(RollbackRequest.model_json_schema()),
)
def roll_back(name: Text, query: Namespace, sent: body.SmallBody, database: Database, actor: Actor) -> dict[str, Any]:
    """Makes an earlier version the active one, until a new text of the agent is applied. Tasks that were accepted
    before keep their version. Going back to the newest version ends a rollback. A disabled agent stays disabled."""
    asked = body.parse_model(RollbackRequest, sent)
    with Session(database) as session:
        AgentRegistry(session, query.namespace).roll_back(name, asked.version, asked.reason, actor=actor)
    return get_agent(name, query, database, actor.key)


@router.put(
    "/{name}/canary",
    response_model=Agent,
    responses=problems.documented(404, 409, 413, 415),
    openapi_extra=body.documented(CanaryRequest.model_json_schema()),
)
def set_canary(name: Text, query: Namespace, sent: body.SmallBody, database: Database, actor: Actor) -> dict[str, Any]:
    """Gives a version a share of the new tasks that name the agent without a version, or changes the share that it has.
    Tasks of one conversation, tenant key or tree get the same version. The canary is rolled back by itself if it fails
    more, costs more or scores less than allowed. A rollback to any version ends it."""
    asked = body.parse_model(CanaryRequest, sent).model_dump(exclude_none=True)
    with Session(database) as session:
        AgentRegistry(session, query.namespace).start_canary(name, actor=actor, **asked)
    return get_agent(name, query, database, actor.key)


@router.put(
    "/{name}/status",
    name="set_agent_status",
    response_model=Agent,
    responses=problems.documented(404, 413, 415),
    openapi_extra=body.documented(AgentStatusRequest.model_json_schema()),
)
def set_status(name: Text, query: Namespace, sent: body.SmallBody, database: Database, actor: Actor) -> dict[str, Any]:
    """Deprecates an agent (it still accepts tasks), disables it (accepted tasks still run), or lets it accept tasks
    again: with the version that is active, so an agent that was rolled back stays so."""
    asked = body.parse_model(AgentStatusRequest, sent)
    with Session(database) as session:
        AgentRegistry(session, query.namespace).set_status(name, asked.status, asked.reason, actor=actor)
    return get_agent(name, query, database, actor.key)


def definition_of(connection: Connection, agent: dict[str, Any], number: int, key: Key) -> dict[str, Any]:
    """Return what the key may see of the definition in a version of an agent that it reaches.

    Raises:
        NotFound: the agent has no such version.
    """
    found = _version(connection, agent, number)
    return _shown(content_in_order(found["definition"], found["key_order"]), key)


def is_reached(connection: Connection, scope: Scope, namespace: str, name: str) -> bool:
    """Return whether there is an agent of that name and a scope reaches it."""
    return find(connection, scope, namespace, name) is not None


def find(connection: Connection, scope: Scope, namespace: str, name: str) -> RowMapping | None:
    """Return the agent of that name, if there is one and a scope reaches it."""
    row = connection.execute(GET, {"namespace": namespace, "name": name}).mappings().one_or_none()
    return row if row is not None and _reaches(scope, row) else None


def _head(connection: Connection, namespace: str, name: str, scope: Scope) -> RowMapping:
    row = find(connection, scope, namespace, name)
    if row is None:
        similar = "" if scope.is_partial else similar_agents(connection, namespace, name)
        raise UnknownAgent(f"There is no agent named {name!r}. `minion agents` lists them.{similar}")
    return row


def _version(connection: Connection, agent: RowMapping | dict[str, Any], number: int) -> RowMapping:
    found = connection.execute(VERSION, {"agent": agent["id"], "number": number}).mappings().one_or_none()
    if found is None:
        raise NotFound(f"The agent {agent['name']!r} has no version {number}.")
    return found


def _scored(connection: Connection, versions: Sequence[RowMapping], key: Key) -> list[dict[str, Any]]:
    """Return versions with the results of their evaluations, which are about the tasks of all callers."""
    seen = [] if key.scope.is_partial else [version["id"] for version in versions]
    scores, unscored = evaluations.scores_of(connection, seen), evaluations.unscored_of(connection, seen)
    for each in (facts for by_evaluator in unscored.values() for facts in by_evaluator.values()):
        each["problem"] = payload(each["problem"])  # a refusal may quote the task
    return [
        {**version, "scores": scores.get(version["id"], {}), "unscored": unscored.get(version["id"], {})}
        for version in versions
    ]


def _canaries(connection: Connection, agents: list[UUID], key: Key) -> dict[UUID, dict[str, Any]]:
    """Return the last canary of each agent. Its figures are about the tasks of all callers."""
    found = canaries.latest(connection, agents)
    hidden = {"figures": None, "reason": None} if key.scope.is_partial else {}
    return {agent: {**canary, **hidden} for agent, canary in found.items()}


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
