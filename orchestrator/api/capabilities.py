"""Capabilities over HTTP: agents and workers for each, and the amount of waiting work."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from sqlalchemy import text

from orchestrator.api.parameters import Statements

# A capability is listed if an agent that accepts tasks offers it, a live worker serves it, or work waits for it.
CAPABILITIES = text("""
    WITH offered AS (
        SELECT c.name, array_agg(a.name ORDER BY a.name) AS agents
            FROM agents a JOIN agent_versions v ON v.id = a.active_version_id, unnest(v.capabilities) AS c (name)
            WHERE a.status <> 'disabled' GROUP BY c.name
    ), live AS (
        SELECT c.name, count(*) AS workers, sum(w.slots) AS slots, sum(w.busy) AS busy
            FROM workers w, unnest(w.capabilities) AS c (name)
            WHERE w.status = 'online' AND w.last_seen > now() - CAST(:lease AS interval) GROUP BY c.name
    ), work AS (
        SELECT capability AS name, count(*) FILTER (WHERE state = 'pending') AS pending,
               count(*) FILTER (WHERE state = 'queued') AS queued, count(*) FILTER (WHERE state = 'running') AS running
            FROM task_status WHERE state IN ('pending', 'queued', 'running') AND capability IS NOT NULL
            GROUP BY capability
    )
    SELECT name, COALESCE(agents, '{}') AS agents, live.name IS NOT NULL AS served,
           COALESCE(workers, 0) AS workers, COALESCE(slots, 0) AS slots, COALESCE(busy, 0) AS busy,
           COALESCE(pending, 0) AS pending, COALESCE(queued, 0) AS queued, COALESCE(running, 0) AS running
        FROM offered FULL JOIN live USING (name) FULL JOIN work USING (name) ORDER BY name
""")

router = APIRouter(prefix="/v1/capabilities", tags=["capabilities"])


class Capability(BaseModel):
    """One capability, which is also the name of the queue that serves it."""

    name: str
    agents: list[str] = Field(description="The agents that offer it and accept tasks.")
    served: bool = Field(description="Whether a live worker serves it. If not, its tasks stay pending.")
    workers: int = Field(description="Live workers that serve it.")
    slots: int = Field(description="How many tasks these workers can run at once, over all their capabilities.")
    busy: int = Field(description="How many tasks these workers run now, over all their capabilities.")
    pending: int
    queued: int
    running: int


class Capabilities(BaseModel):
    """All capabilities, by name."""

    items: list[Capability]


@router.get("", response_model=Capabilities)
def list_capabilities(request: Request, database: Statements) -> dict[str, Any]:
    """Every capability that an agent offers, a worker serves or a task needs."""
    lease = timedelta(seconds=request.app.state.settings.lease_seconds)
    with database.connect() as connection:
        return {"items": list(connection.execute(CAPABILITIES, {"lease": lease}).mappings())}
