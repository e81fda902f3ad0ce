"""Capabilities over HTTP: agents and workers for each, and the amount of waiting work."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, Field
from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, TEXT

from orchestrator.api.auth import Caller
from orchestrator.api.parameters import Statements, StrictQuery, Text
from orchestrator.observe import scale
from orchestrator.observe.scale import Wanted

# A capability is listed if an agent that accepts tasks offers it, a live worker serves it, or work waits for it.
CAPABILITIES = text("""
    WITH offered AS (
        SELECT c.name, array_agg(a.name ORDER BY a.name) AS agents
            FROM agents a JOIN agent_versions v ON v.id = a.active_version_id, unnest(v.capabilities) AS c (name)
            WHERE a.status <> 'disabled' AND (CAST(:namespace AS text) IS NULL OR a.namespace = :namespace)
              AND (:only_agents = '{}' OR a.name = ANY (:only_agents))
            GROUP BY c.name
    ), live AS (
        SELECT c.name, count(*) AS workers, sum(w.slots) AS slots, sum(w.busy) AS busy
            FROM workers w, unnest(w.capabilities) AS c (name)
            WHERE w.status = 'online' AND w.last_seen > now() - CAST(:lease AS interval) GROUP BY c.name
    ), work AS (
        SELECT capability AS name, count(*) FILTER (WHERE state = 'pending') AS pending,
               count(*) FILTER (WHERE state = 'queued') AS queued, count(*) FILTER (WHERE state = 'running') AS running
            FROM task_status WHERE state IN ('pending', 'queued', 'running') AND capability IS NOT NULL
              AND (CAST(:namespace AS text) IS NULL OR namespace = :namespace)
              AND (:only_agents = '{}' OR agent_name = ANY (:only_agents))
              AND (CAST(:tenant AS text) IS NULL OR key = :tenant)
              AND (CAST(:tenant_prefix AS text) IS NULL OR starts_with(key, :tenant_prefix))
            GROUP BY capability
    )
    SELECT name, COALESCE(agents, '{}') AS agents, live.name IS NOT NULL AS served,
           COALESCE(workers, 0) AS workers, COALESCE(slots, 0) AS slots, COALESCE(busy, 0) AS busy,
           COALESCE(pending, 0) AS pending, COALESCE(queued, 0) AS queued, COALESCE(running, 0) AS running
        FROM offered FULL JOIN live USING (name) FULL JOIN work USING (name)
        WHERE (:only_capabilities = '{}' OR name = ANY (:only_capabilities))
          -- A bound key learns of no capability that only others use.
          AND (:whole OR offered.name IS NOT NULL OR work.name IS NOT NULL)
        ORDER BY name
""").bindparams(bindparam("only_agents", type_=ARRAY(TEXT)), bindparam("only_capabilities", type_=ARRAY(TEXT)))

# The leader reads them every few seconds, for metrics too.
OLDEST = text(
    """
    SELECT g->0->>'capability' AS name, gauges_at - (g->>1)::float8 * interval '1 s' AS since
        FROM statistics_state, jsonb_array_elements(gauges->'minions_oldest_pending_seconds') AS g
    """
)

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
    oldest_pending: datetime | None = Field(
        None,
        description="Since when the pending task that is first in line waits, as read every few seconds. Null if there "
        "is none, or if the key is bound to a part of the installation.",
    )


class Capabilities(BaseModel):
    """All capabilities, by name."""

    items: list[Capability]


@router.get("", response_model=Capabilities)
def list_capabilities(request: Request, database: Statements, key: Caller) -> dict[str, Any]:
    """Every capability that an agent offers, a worker serves or a task needs."""
    scope = key.scope
    values = {
        "lease": timedelta(seconds=request.app.state.settings.lease_seconds),
        "whole": scope.is_whole,
        "namespace": scope.namespace,
        "only_agents": list(scope.agents),
        "only_capabilities": list(scope.capabilities),
        "tenant": scope.conditions.get("tenant"),
        "tenant_prefix": scope.conditions.get("tenant_prefix"),
    }
    with database.connect() as connection:
        # They are about all namespaces together.
        oldest = oldest_pending(connection) if scope.is_whole else {}
        found = connection.execute(CAPABILITIES, values).mappings()
        return {"items": [{**each, "oldest_pending": oldest.get(each["name"])} for each in found]}


def oldest_pending(connection: Connection) -> dict[str, datetime]:
    """Return since when the first pending task of each capability waits."""
    return {row.name: row.since for row in connection.execute(OLDEST)}


class ScaleQuery(StrictQuery):
    """An operator's requirements for the workers of a capability."""

    wait_seconds: float = Field(60.0, gt=0, le=86_400, description="How long tasks may wait for a slot.")
    slots: int = Field(1, ge=1, le=10_000, description="Slots of a worker; used while no worker is live.")
    least: int = Field(0, ge=0, le=10_000, description="The fewest workers.")
    most: int = Field(100, ge=1, le=10_000, description="The most workers.")


class Scale(BaseModel):
    """The number of workers that a capability needs, and why."""

    desired: int = Field(description="For KEDA's metrics-api scaler, with a target value of 1.")
    workers: int = Field(description="Live workers.")
    slots: int = Field(description="Their slots.")
    backlog: int = Field(description="Tasks that wait for a slot: pending, without those that are paused, and queued.")
    running: int
    run_seconds: float | None = Field(description="Mean run time in the last hours; null if nothing has run.")


@router.get("/{name}/scale", response_model=Scale)
def show_scale(
    name: Annotated[Text, Path()], query: Annotated[ScaleQuery, Query()], request: Request, database: Statements
) -> dict[str, Any]:
    """The number of workers that it needs now, for an autoscaler. The scrape token (MINION_METRICS_TOKEN) is enough."""
    wanted = Wanted(wait_seconds=query.wait_seconds, slots_per_worker=query.slots, least=query.least, most=query.most)
    with database.connect() as connection:
        load = scale.load_of(connection, name, lease=request.app.state.settings.lease_seconds)
    facts = ("workers", "slots", "backlog", "running", "run_seconds")
    return {"desired": scale.desired(load, wanted), **{fact: getattr(load, fact) for fact in facts}}
