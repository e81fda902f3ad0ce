"""The function store over HTTP: the list, the code, and every version of each function."""

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
        row = connection.execute(GET, {"namespace": query.namespace, "name": name}).mappings().one_or_none()
        if row is None:
            raise NotFound(f"There is no function named {name!r}. `minion functions` lists them.")
        definition = content_in_order(row["definition"], row["key_order"])
        versions = list(connection.execute(VERSIONS, {"function": row["id"]}).mappings())
        return {**row, "definition": definition, "versions": versions}
