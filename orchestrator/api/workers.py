"""The minions: their capabilities and heartbeats."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from sqlalchemy import text

from orchestrator.api.parameters import ItemPage, PageQuery, Statements
from shared.tasks.queries import Page, page_of

WORKERS = text("""
    SELECT id, name, capabilities, slots, busy, status,
           status = 'online' AND last_seen > now() - CAST(:lease AS interval) AS live,
           pool, host, pid, version, packages, memory_bytes, started_at, last_seen
        FROM workers
        WHERE (CAST(:status AS text) IS NULL OR status = :status) AND (CAST(:before AS uuid) IS NULL OR id < :before)
        ORDER BY id DESC LIMIT :most
""")

router = APIRouter(prefix="/v1/workers", tags=["workers"])


class Worker(BaseModel):
    """A minion's main process."""

    id: UUID
    name: str
    capabilities: list[str]
    slots: int = Field(description="How many tasks it can run at once.")
    busy: int = Field(description="How many tasks it runs now.")
    status: str = Field(description="online, stopped or lost.")
    live: bool = Field(description="Whether it is online and its last heartbeat is within the lease.")
    pool: str
    host: str
    pid: int
    version: str
    packages: list[str] | None = Field(
        description="Packages that functions may import there; null if it does not report them."
    )
    memory_bytes: int | None = Field(
        description="Memory of its processes, in which a shared page counts once; null if it does not report it."
    )
    started_at: datetime
    last_seen: datetime


class WorkerPageQuery(PageQuery):
    """Filters for workers."""

    status: Literal["online", "stopped", "lost"] | None = None
    cursor: UUID | None = Field(None, description="The `next` of the previous page.")


@router.get("", response_model=ItemPage[Worker])
def list_workers(query: Annotated[WorkerPageQuery, Query()], request: Request, database: Statements) -> Page:
    """Workers, the latest started first."""
    lease = timedelta(seconds=request.app.state.settings.lease_seconds)
    values = {"lease": lease, "status": query.status, "before": query.cursor, "most": query.limit + 1}
    with database.connect() as connection:
        return page_of(connection.execute(WORKERS, values).mappings().all(), query.limit, "id")
