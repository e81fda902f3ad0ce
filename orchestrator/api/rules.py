"""Pauses and limits over HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from orchestrator.api import body, problems
from orchestrator.api.actors import Actor
from orchestrator.api.auth import Caller
from orchestrator.api.parameters import Database, Namespace, Statements
from shared.audit import log
from shared.tasks import throttles
from shared.tasks.throttles import LimitScope, Rate, Scope

router = APIRouter(prefix="/v1", tags=["pauses and limits"])


class Pause(BaseModel):
    """Tasks of this capability, agent or key do not start."""

    namespace: str
    scope: Scope
    name: str
    reason: str | None
    created_at: datetime
    created_by: str | None


class Limit(BaseModel):
    """Limit on the tasks that run at the same time or start in a period; for a model, on requests and tokens in a
    period. The name `*` applies to each one without its own limit.
    """

    namespace: str
    scope: LimitScope
    name: str
    max_running: int | None
    rate: int | None = Field(
        description="How many tasks may start in `period_seconds`; for a model, how many requests."
    )
    period_seconds: float | None
    input_tokens: int | None = Field(description="For a model: input tokens in `input_tokens_seconds`.")
    input_tokens_seconds: float | None
    output_tokens: int | None = Field(description="For a model: output tokens in `output_tokens_seconds`.")
    output_tokens_seconds: float | None
    created_at: datetime
    created_by: str | None


class Pauses(BaseModel):
    """All pauses."""

    items: list[Pause]


class Limits(BaseModel):
    """All limits."""

    items: list[Limit]


class PauseRequest(BaseModel):
    """Reason for a pause of tasks."""

    model_config = ConfigDict(extra="forbid")

    reason: str | None = Field(None, min_length=1, max_length=500)


class LimitRequest(BaseModel):
    """The limit: `max_running`, `rate` or both; for a model `rate`, `input_tokens`, `output_tokens` or several."""

    model_config = ConfigDict(extra="forbid", strict=True)

    max_running: int | None = Field(None, ge=0, le=1_000_000, description="How many tasks may run at once.")
    rate: str | None = Field(
        None,
        max_length=50,
        description="How many tasks may start in a period: `10/s`, `100/5m`, `1000/h`; for a model, requests.",
    )
    input_tokens: str | None = Field(
        None, max_length=50, description="For a model, input tokens in a period: `40000/m`."
    )
    output_tokens: str | None = Field(
        None, max_length=50, description="For a model, output tokens in a period: `8000/m`."
    )


@router.get("/pauses", response_model=Pauses)
def list_pauses(database: Statements, key: Caller) -> dict[str, Any]:
    """List the pauses, by scope and name."""
    with database.connect() as connection:
        return {"items": throttles.list_pauses(connection, namespace=key.scope.namespace)}


@router.put(
    "/pauses/{scope}/{name:path}",
    name="set_pause",
    response_model=Pause,
    responses=problems.documented(413, 415),
    openapi_extra=body.documented(PauseRequest.model_json_schema(), required=False),
)
def pause(
    scope: Scope, name: str, query: Namespace, sent: body.TaskBody, database: Database, actor: Actor
) -> dict[str, Any]:
    """Pauses a capability, an agent or a key: running tasks continue, and no other starts. May be repeated."""
    asked = body.parse_model(PauseRequest, sent, required=False)
    where = query.namespace
    with database.begin() as connection:
        before = throttles.find_pause(connection, scope, name, namespace=where)
        paused = throttles.pause(connection, scope, name, reason=asked.reason, namespace=where, who=str(actor))
        after = {"reason": paused["reason"], "created_by": paused["created_by"]}
        log.record(connection, actor, "pause.set", f"{scope} {name}", namespace=where, before=before, after=after)
        return paused


@router.delete(
    "/pauses/{scope}/{name:path}",
    name="remove_pause",
    status_code=204,
    response_class=Response,
    responses=problems.documented(404),
)
def resume(scope: Scope, name: str, query: Namespace, database: Database, actor: Actor) -> None:
    """Resumes a capability, an agent or a key."""
    where = query.namespace
    with database.begin() as connection:
        before = throttles.find_pause(connection, scope, name, namespace=where)
        throttles.resume(connection, scope, name, namespace=where)
        log.record(connection, actor, "pause.remove", f"{scope} {name}", namespace=where, before=before)


@router.get("/limits", response_model=Limits)
def list_limits(database: Statements, key: Caller) -> dict[str, Any]:
    """All limits, by scope and name."""
    with database.connect() as connection:
        return {"items": throttles.list_limits(connection, namespace=key.scope.namespace)}


@router.put(
    "/limits/{scope}/{name:path}",
    response_model=Limit,
    responses=problems.documented(413, 415),
    openapi_extra=body.documented(LimitRequest.model_json_schema()),
)
def set_limit(
    scope: LimitScope, name: str, query: Namespace, sent: body.TaskBody, database: Database, actor: Actor
) -> dict[str, Any]:
    """Limits a capability, an agent, a key or a model (`*`: each one without its own limit). Replaces the present
    limit.
    """
    asked = body.parse_model(LimitRequest, sent)
    with database.begin() as connection:
        before = throttles.find_limit(connection, scope, name, namespace=query.namespace)
        limit = throttles.set_limit(
            connection,
            scope,
            name,
            max_running=asked.max_running,
            rate=_rate(asked.rate),
            input_tokens=_rate(asked.input_tokens),
            output_tokens=_rate(asked.output_tokens),
            namespace=query.namespace,
            who=str(actor),
        )
        after = throttles.find_limit(connection, scope, name, namespace=query.namespace)
        target = f"{scope} {name}"
        log.record(connection, actor, "limit.set", target, namespace=query.namespace, before=before, after=after)
        return limit


@router.delete(
    "/limits/{scope}/{name:path}", status_code=204, response_class=Response, responses=problems.documented(404)
)
def remove_limit(scope: LimitScope, name: str, query: Namespace, database: Database, actor: Actor) -> None:
    """Removes a limit."""
    where = query.namespace
    with database.begin() as connection:
        before = throttles.find_limit(connection, scope, name, namespace=where)
        throttles.remove_limit(connection, scope, name, namespace=where)
        log.record(connection, actor, "limit.remove", f"{scope} {name}", namespace=where, before=before)


def _rate(written: str | None) -> Rate | None:
    return Rate.parse(written) if written else None
