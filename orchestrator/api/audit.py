"""The audit log over HTTP: read it. It is verified on the database, by `minion audit verify`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from orchestrator.api.auth import Caller
from orchestrator.api.parameters import ItemPage, PageQuery, Statements, Text
from shared.audit import log
from shared.audit.log import AuditFilter
from shared.contracts.strict_model import Moment
from shared.tasks.queries import Page

router = APIRouter(prefix="/v1/audit", tags=["audit"])


class AuditRow(BaseModel):
    """One act, or a count of refused requests."""

    id: int
    at: datetime
    act: str = Field(examples=["task.cancel"])
    actor: str = Field(description="The name of a key; or the user of an operating system, with `(database)`.")
    key_prefix: str | None = Field(description="The first characters of the key.")
    claimed: str | None = Field(description="The name that the key's holder claimed.")
    address: str | None
    request_id: str | None
    namespace: str | None = Field(description="Null if the act concerns the whole installation.")
    target: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    position: int | None = Field(description="The row's place in the chain; null until it is sealed, seconds later.")
    hash: str | None


class AuditQuery(PageQuery):
    """Filters for rows."""

    act: Text | None = Field(None, description="An act such as `task.cancel`, or all that begin with `task.`: `task`.")
    actor: Text | None = Field(None, description="The name of a key or user, or the prefix of a key.")
    target: Text | None = None
    since: Moment | None = Field(None, strict=False)
    until: Moment | None = Field(None, strict=False)
    cursor: int | None = Field(None, ge=1, le=2**63 - 1, description="The `next` of the previous page.")


@router.get("", response_model=ItemPage[AuditRow])
def list_audit(query: Annotated[AuditQuery, Query()], database: Statements, caller: Caller) -> Page:
    """The audit log, the newest rows first. A key that is bound to a namespace sees the rows of the namespace."""
    chosen = AuditFilter(
        namespace=caller.scope.namespace, **query.model_dump(include={"act", "actor", "target", "since", "until"})
    )
    with database.connect() as connection:
        rows = log.list_rows(connection, chosen, limit=query.limit, before=query.cursor)
    items = rows[: query.limit]
    return Page(items, str(items[-1]["id"]) if len(rows) > query.limit else None)
