"""The kill switch over HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from orchestrator.api import body, problems
from orchestrator.api.actors import Actor
from orchestrator.api.auth import Caller
from orchestrator.api.parameters import Database, Statements, StrictQuery, Text
from shared.access import actors
from shared.access.actors import Key
from shared.audit import log
from shared.tasks import stops
from shared.tasks.stops import Scope
from shared.tasks.targets import Target

router = APIRouter(prefix="/v1/stops", tags=["stops"])


class Stop(BaseModel):
    """Tasks of this part of the installation begin no model call and no unsafe effect."""

    scope: Scope
    namespace: str | None = Field(description="Null for the whole installation.")
    name: str | None = Field(description="Of the agent or the tenant key.")
    reason: str | None
    created_at: datetime
    created_by: str | None


class Stops(BaseModel):
    """All stops."""

    items: list[Stop]


class StopRequest(BaseModel):
    """What to stop: the whole `installation`, a `namespace`, or an `agent` or tenant `key` by its name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    scope: Scope
    namespace: str | None = Field(None, description="For an agent or a key: `default` if it is left out.")
    name: str | None = None
    reason: str | None = Field(None, min_length=1, max_length=500)


class StopQuery(StrictQuery):
    """The stop to lift."""

    scope: Scope
    namespace: Text | None = None
    name: Text | None = None


@router.get("", response_model=Stops)
def list_stops(database: Statements, key: Caller) -> dict[str, Any]:
    """List the stops, that of the installation first."""
    with database.connect() as connection:
        return {"items": stops.list_stops(connection, namespace=key.scope.namespace)}


@router.post(
    "",
    name="set_stop",
    response_model=Stop,
    responses=problems.documented(413, 415),
    openapi_extra=body.documented(StopRequest.model_json_schema()),
)
def stop(sent: body.TaskBody, database: Database, actor: Actor) -> dict[str, Any]:
    """Stops a part of the installation, or all of it: no model call and no unsafe effect begins there. Calls that have
    begun end, pure and idempotent ones continue to begin. May be repeated.
    """
    asked = body.parse_model(StopRequest, sent)
    target = stops.target_of(asked.scope, _namespace(actor.key, asked), asked.name)
    with database.begin() as connection:
        before = stops.find(connection, target)
        stopped = stops.stop(connection, target, reason=asked.reason, who=str(actor))
        after = stops.find(connection, target)
        _record(connection, actor, "stop.set", target, before=before, after=after)
        return stopped


@router.delete("", name="remove_stop", status_code=204, response_class=Response, responses=problems.documented(404))
def lift(query: Annotated[StopQuery, Query()], database: Database, actor: Actor) -> None:
    """Lifts a stop: its tasks continue."""
    target = stops.target_of(query.scope, _namespace(actor.key, query), query.name)
    with database.begin() as connection:
        before = stops.find(connection, target)
        stops.lift(connection, target)
        _record(connection, actor, "stop.lift", target, before=before)


def _record(connection: Connection, actor: actors.Actor, act: str, target: Target, **states: Any) -> None:
    named, namespace = f"{target.scope} {target.name}".rstrip(), target.namespace or None
    log.record(connection, actor, act, named, namespace=namespace, **states)


def _namespace(key: Key, asked: StopRequest | StopQuery) -> str | None:
    return key.scope.namespace_of_target(asked.scope, asked.namespace)
