"""Schedules over HTTP: store, look, change, delete, run now."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from orchestrator.api import body, problems
from orchestrator.api.actors import Actor
from orchestrator.api.base_path import link
from orchestrator.api.masking import PayloadText, StoredRequest
from orchestrator.api.parameters import Database, ItemPage, NamedPage, Namespace, Statements, Text
from orchestrator.api.task_models import Task
from orchestrator.schedules import store
from orchestrator.schedules.store import ScheduleDefinition
from shared.access import actors
from shared.access.roles import MASK, Permission
from shared.audit import log
from shared.errors import InvalidInput
from shared.tasks import lifecycle, queries
from shared.tasks.queries import Page

DEFINITION = ScheduleDefinition.model_json_schema()
NAMED = {**DEFINITION, "properties": {k: v for k, v in DEFINITION["properties"].items() if k != "name"}}
PUT_SCHEMA = {**NAMED, "title": "ScheduleContent", "required": ["request"]}
PATCH_SCHEMA = {**NAMED, "title": "ScheduleChange", "required": []}
RUN_SCHEMA = {
    "title": "ScheduleRun",
    "type": "object",
    "additionalProperties": False,
    "properties": {"idempotency_key": {"type": "string", "minLength": 1, "maxLength": 255}},
}

router = APIRouter(prefix="/v1/schedules", tags=["schedules"])


class Schedule(BaseModel):
    """A task that is submitted repeatedly."""

    name: str
    namespace: str
    cron: str | None
    timezone: str | None = Field(description="The time zone of `cron`.")
    interval_seconds: float | None
    missed: Literal["skip", "once", "all"]
    request: StoredRequest
    enabled: bool
    next_at: datetime | None = Field(description="Null while it is disabled.")
    last_at: datetime | None = Field(description="The time of the last run, even if it was refused.")
    last_task_id: UUID | None
    last_error: PayloadText = Field(description="Why the last run was refused; null if it was not.")
    created_at: datetime


@router.get("", response_model=ItemPage[Schedule])
def list_schedules(query: NamedPage, database: Statements) -> Page:
    """All schedules, by name."""
    with database.connect() as connection:
        return store.list_schedules(connection, query.namespace, limit=query.limit, after=query.cursor)


@router.post(
    "",
    status_code=201,
    response_model=Schedule,
    responses=problems.documented(404, 409, 413, 415),
    openapi_extra=body.documented(DEFINITION),
)
def create_schedule(
    sent: body.TaskBody, query: Namespace, database: Database, response: Response, actor: Actor
) -> dict[str, Any]:
    """Stores a new schedule. A task that every run would be refused for is refused now."""
    definition = ScheduleDefinition.parse(body.parse_object(sent))
    store.try_out(database, query.namespace, definition.name, definition.request)
    with database.begin() as connection:
        created = store.create(connection, query.namespace, definition, key=actor.key.identity)
        _record(connection, actor, "schedule.create", None, created)
    response.headers["Location"] = link(f"/v1/schedules/{definition.name}")
    return created


@router.get("/{name}", response_model=Schedule, responses=problems.documented(404))
def get_schedule(name: Text, query: Namespace, database: Statements) -> dict[str, Any]:
    """One schedule."""
    with database.connect() as connection:
        return store.get(connection, query.namespace, name)


@router.put(
    "/{name}",
    response_model=Schedule,
    responses={201: {"model": Schedule, "description": "Created"}, **problems.documented(404, 409, 413, 415)},
    openapi_extra=body.documented(PUT_SCHEMA),
)
def put_schedule(
    name: Text, sent: body.TaskBody, query: Namespace, database: Database, response: Response, actor: Actor
) -> dict[str, Any]:
    """Stores a schedule: a new one (201), or in place of the one with that name (200), which keeps its next run if its
    times stay the same. May be repeated."""
    definition = ScheduleDefinition.parse(_named(name, body.parse_object(sent)))
    store.try_out(database, query.namespace, name, definition.request)
    with database.begin() as connection:
        before = store.find(connection, query.namespace, name)
        stored, created = store.put(connection, query.namespace, definition, key=actor.key.identity)
        _record(connection, actor, "schedule.create" if created else "schedule.change", before, stored)
    response.status_code = 201 if created else 200
    return stored


@router.patch(
    "/{name}",
    response_model=Schedule,
    responses=problems.documented(404, 409, 413, 415),
    openapi_extra=body.documented(PATCH_SCHEMA),
)
def change_schedule(
    name: Text, sent: body.TaskBody, query: Namespace, database: Database, actor: Actor
) -> dict[str, Any]:
    """Changes the fields that are sent; null removes one. `{"enabled": false}` stops a schedule; runs that it misses
    are not made up for."""
    changes = _named(name, body.parse_object(sent))
    if "request" in changes:
        actor.key.require(Permission.TASKS_SUBMIT)
    # Check only what is new: an agent that was disabled since must not prevent stopping its schedule.
    if isinstance(request := changes.get("request"), dict):
        store.try_out(database, query.namespace, name, request)
    with database.begin() as connection:
        before = store.find(connection, query.namespace, name)
        stored = store.change(connection, query.namespace, name, changes, key=actor.key.identity)
        _record(connection, actor, "schedule.change", before, stored)
        return stored


@router.delete("/{name}", response_model=Schedule, responses=problems.documented(404))
def delete_schedule(name: Text, query: Namespace, database: Database, actor: Actor) -> dict[str, Any]:
    """Deletes a schedule and shows what it was. Its tasks stay."""
    with database.begin() as connection:
        deleted = store.delete(connection, query.namespace, name)
        _record(connection, actor, "schedule.delete", deleted, None)
        return deleted


@router.post(
    "/{name}/run",
    status_code=201,
    response_model=Task,
    responses={200: {"model": Task, "description": "Submitted before"}, **problems.documented(404, 409, 413, 415)},
    openapi_extra=body.documented(RUN_SCHEMA, required=False),
)
def run_schedule(
    name: Text, sent: body.TaskBody, query: Namespace, database: Database, response: Response, actor: Actor
) -> dict[str, Any]:
    """Submits the schedule's task once more, now. With an idempotency key the call may be repeated."""
    asked = body.parse_object(sent, required=False)
    if unknown := asked.keys() - {"idempotency_key"}:
        raise InvalidInput(f"A run takes only `idempotency_key`, not {min(unknown)[:100]!r}.")
    try:
        prepared = store.prepare_run(
            database,
            query.namespace,
            name,
            idempotency_key=asked.get("idempotency_key"),
            submitter_key=actor.key.identity,
        )
    except InvalidInput as error:
        # It may quote the stored input.
        raise (
            error if actor.key.may(Permission.PAYLOADS_READ) else InvalidInput(f"The task is refused: {MASK}.")
        ) from None
    with database.begin() as connection:
        [accepted] = lifecycle.accept(connection, prepared)
        response.status_code = 201 if accepted.created else 200
        response.headers["Location"] = link(f"/v1/tasks/{accepted.task_id}")
        after = {"task": accepted.task_id, "created": accepted.created}
        log.record(connection, actor, "schedule.run", name, namespace=query.namespace, after=after)
        return queries.get_task(connection, accepted.task_id)


def _record(
    connection: Connection,
    actor: actors.Actor,
    act: str,
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
) -> None:
    stored = after or before
    assert stored is not None
    states = log.changed(before and _recorded(before), after and _recorded(after))
    log.record(connection, actor, act, stored["name"], namespace=stored["namespace"], **states)


def _recorded(row: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a schedule for the audit log, with a digest of its request in place of the input."""
    return {
        **{name: row[name] for name in ("cron", "timezone", "interval_seconds", "missed", "enabled")},
        **{f"request.{name}": row["request"].get(name) for name in ("agent", "capability", "key", "priority")},
        "request": log.fingerprint(row["request"]),
    }


def _named(name: str, data: dict[str, Any]) -> dict[str, Any]:
    """Add the name in the path to the body, which may contain it too."""
    if data.get("name", name) != name:
        raise InvalidInput("The name in the path and `name` in the body differ: leave it out of the body.")
    return {**data, "name": name}
