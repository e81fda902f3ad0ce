"""The function store over HTTP: the list, the code, every version of each function, its security events and status."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, RowMapping, text
from sqlalchemy.orm import Session

from orchestrator.api import body, problems
from orchestrator.api.actors import Actor
from orchestrator.api.masking import Payload
from orchestrator.api.parameters import Database, ItemPage, NamedPage, Namespace, Statements, Text
from shared.contracts.documents import content_in_order
from shared.definitions.function_store import FunctionStore
from shared.errors import NotFound
from shared.tasks.queries import Page, page_of

LIST = text(
    "SELECT f.id, f.namespace, f.name, f.created_at, v.number AS version, v.checksum, v.status, v.description, "
    "v.created_at AS version_created_at "
    "FROM functions f JOIN function_versions v ON v.id = f.active_version_id "
    "WHERE f.namespace = :namespace AND f.name > :after ORDER BY f.name LIMIT :most"
)
GET = text(
    "SELECT f.id, f.namespace, f.name, f.created_at, v.number AS version, v.checksum, v.status, v.description, "
    "v.created_at AS version_created_at, v.definition, v.key_order "
    "FROM functions f JOIN function_versions v ON v.id = f.active_version_id "
    "WHERE f.namespace = :namespace AND f.name = :name"
)
VERSIONS = text(
    "SELECT id, number, checksum, status, status_reason, created_at FROM function_versions "
    "WHERE function_id = :function ORDER BY number DESC"
)
VERSION = text("SELECT definition, key_order FROM function_versions WHERE function_id = :function AND number = :number")
EVENTS = text(
    """
    SELECT e.* FROM function_versions v CROSS JOIN LATERAL (
        SELECT s.id, s.created_at AS at, s.kind, v.number AS version, s.task_id, s.detail FROM security_events s
            WHERE s.function_version_id = v.id ORDER BY s.id DESC LIMIT :most) e
        WHERE v.function_id = :function ORDER BY e.id DESC LIMIT :most
    """
)
MOST_EVENTS = 50

router = APIRouter(prefix="/v1/functions", tags=["functions"])


class FunctionSummary(BaseModel):
    """A function as its active version describes it."""

    name: str
    namespace: str
    version: int
    checksum: str = Field(description="SHA-256.")
    status: str = Field(description="active, deprecated or quarantined.")
    description: str
    created_at: datetime
    version_created_at: datetime


class FunctionVersionSummary(BaseModel):
    """One immutable version."""

    id: UUID
    number: int
    checksum: str
    status: str
    status_reason: str | None
    created_at: datetime


class Function(FunctionSummary):
    """A function with its definition (code, schemas, config) and its versions, the newest first."""

    definition: dict[str, Any]
    versions: list[FunctionVersionSummary]


class SecurityEvent(BaseModel):
    """A denied action, a kill, or a hash that did not match."""

    at: datetime
    kind: str
    version: int
    task_id: UUID | None
    detail: Payload


class SecurityEvents(BaseModel):
    """The latest events of all versions, the newest first."""

    items: list[SecurityEvent]


class FunctionStatusRequest(BaseModel):
    """The new status of a version: the active one, unless another is named."""

    model_config = ConfigDict(extra="forbid", strict=True)

    status: Literal["active", "deprecated", "quarantined"]
    version: int | None = Field(None, ge=1, le=2**31 - 1)
    reason: str | None = Field(None, min_length=1, max_length=500)


@router.get("", response_model=ItemPage[FunctionSummary])
def list_functions(query: NamedPage, database: Statements) -> Page:
    """All functions, by name."""
    values = {"namespace": query.namespace, "after": query.cursor, "most": query.limit + 1}
    with database.connect() as connection:
        return page_of(connection.execute(LIST, values).mappings().all(), query.limit, "name")


@router.get("/{name}", response_model=Function, responses=problems.documented(404))
def get_function(name: Text, query: Namespace, database: Statements) -> dict[str, Any]:
    """One function: its code, contract and versions."""
    with database.connect() as connection:
        row = _head(connection, query.namespace, name)
        definition = _content(row["definition"], row["key_order"])
        versions = list(connection.execute(VERSIONS, {"function": row["id"]}).mappings())
        return {**row, "definition": definition, "versions": versions}


@router.get(
    "/{name}/security-events",
    name="list_security_events",
    response_model=SecurityEvents,
    responses=problems.documented(404),
)
def list_events(name: Text, query: Namespace, database: Statements) -> dict[str, Any]:
    """The latest 50 security events: denied actions, kills by a limit, hashes that did not match."""
    with database.connect() as connection:
        function = _head(connection, query.namespace, name)["id"]
        return {"items": connection.execute(EVENTS, {"function": function, "most": MOST_EVENTS}).mappings().all()}


@router.put(
    "/{name}/status",
    name="set_function_status",
    response_model=Function,
    responses=problems.documented(404, 413, 415),
    openapi_extra=body.documented(FunctionStatusRequest.model_json_schema()),
)
def set_status(name: Text, query: Namespace, sent: body.SmallBody, database: Database, actor: Actor) -> dict[str, Any]:
    """Deprecates a version, quarantines it (it runs nowhere, within a second), or makes it active again: then its
    security events are counted from zero. A version whose row was changed from outside cannot be made active."""
    asked = body.parse_model(FunctionStatusRequest, sent)
    with Session(database) as session:
        FunctionStore(session, query.namespace).set_status(
            name, asked.status, version=asked.version, reason=asked.reason, actor=actor
        )
    return get_function(name, query, database)


def definition_of(connection: Connection, function: dict[str, Any], number: int) -> dict[str, Any]:
    """Return the definition in a version of a function.

    Raises:
        NotFound: the function has no such version.
    """
    found = connection.execute(VERSION, {"function": function["id"], "number": number}).one_or_none()
    if found is None:
        raise NotFound(f"The function {function['name']!r} has no version {number}.")
    return _content(found.definition, found.key_order)


def _content(definition: Any, order: Any) -> dict[str, Any]:
    """Return a stored definition. A row that was changed from outside is still shown, so it can be quarantined."""
    return content_in_order(definition, order) if isinstance(definition, dict) else {}


def _head(connection: Connection, namespace: str, name: str) -> RowMapping:
    row = connection.execute(GET, {"namespace": namespace, "name": name}).mappings().one_or_none()
    if row is None:
        raise NotFound(f"There is no function named {name!r}. `minion functions` lists them.")
    return row
