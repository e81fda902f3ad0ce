"""Bulk acts over HTTP: cancel, replay or label all tasks that match a query, in the background."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Response
from pydantic import BaseModel, Field, ValidationError, model_validator
from sqlalchemy import Connection

from orchestrator.api import body, problems
from orchestrator.api.actors import Actor
from orchestrator.api.auth import Caller
from orchestrator.api.masking import Error, Labels
from orchestrator.api.parameters import Database, ItemPage, PageQuery, Statements, Text, in_namespace
from orchestrator.api.task_filters import TaskQuery
from orchestrator.api.task_models import NewLabels, TaskSummary, check_private
from orchestrator.bulk import store
from orchestrator.bulk.store import Plan
from shared.access.actors import Key
from shared.contracts.strict_model import Moment, Strict, faults_of
from shared.errors import InvalidInput
from shared.tasks import queries
from shared.tasks.queries import Page
from shared.tasks.task_query import LONGEST, names_private_label

SHOWN = 20
"""Tasks that a dry run shows."""
OWN: dict[str, tuple[str, ...]] = {
    "cancel": ("reason",),
    "replay": ("pinned", "new_keys", "again"),
    "label": ("labels",),
}
"""The options of each act."""

State = Literal["running", "stopped", "done"]

router = APIRouter(prefix="/v1/bulk-acts", tags=["bulk acts"])


class BulkRequest(Strict):
    """An act on all tasks that match a query."""

    act: store.Act
    query: str = Field(max_length=LONGEST, description="As in lists of tasks; it must have at least one term.")
    rate: float = Field(20.0, ge=0.01, le=1000, description="Tasks a second.")
    dry_run: bool = Field(False, description="Only count and show the tasks.")
    created_before: Moment | None = Field(
        None,
        strict=False,
        description="Only tasks that were created before: the `until` of a dry run. By default now. A request with it "
        "that is sent again starts no second act.",
    )
    reason: str = Field("Cancelled by a bulk act.", min_length=1, max_length=500, description="Of a cancellation.")
    pinned: bool = Field(False, description="Replay with the agent versions of the original tasks.")
    new_keys: bool = Field(False, description="Give the calls of the replays new idempotency keys.")
    again: bool = Field(False, description="Replay also tasks that already have a replay.")
    labels: NewLabels | None = Field(None, description="Values by name; null removes a label.")

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        if not self.query.strip():
            raise ValueError("`query` must have at least one term, like `state:failed since:1d`")
        if (self.act == "label") != (self.labels is not None):
            raise ValueError("`labels` must be given for the act `label`, and for no other")
        for act, names in OWN.items():
            if act != self.act and (foreign := self.model_fields_set & set(names)):
                raise ValueError(f"`{min(foreign)}` is an option of the act `{act}`, not of `{self.act}`")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The options of the act, as they are stored."""
        return self.model_dump(include=set(OWN[self.act]))


class RefusedTask(BaseModel):
    """A task that was refused."""

    task_id: UUID
    error: Error


class Options(BaseModel):
    """The options of an act; those of other acts are left out."""

    reason: str | None = None
    pinned: bool | None = None
    new_keys: bool | None = None
    again: bool | None = None
    labels: Labels | None = None


class BulkAct(BaseModel):
    """A bulk act and its progress."""

    id: UUID | None = Field(description="Null in a dry run.")
    namespace: str
    act: store.Act
    query: str
    options: Options
    rate: float
    state: State | None = Field(description="Null in a dry run.")
    matched: int = Field(description="Tasks that matched when it was started.")
    more: bool = Field(description=f"Counting ended after {queries.MOST_COUNTED:,} tasks: there may be more.")
    done: int
    failed: int = Field(description="Tasks that were refused; `failures` has the first of them.")
    skipped: int = Field(description="Tasks that no longer matched when it was their turn.")
    failures: list[RefusedTask]
    created_at: datetime | None
    created_by: str
    ended_at: datetime | None
    stopped_by: str | None
    by_state: dict[str, int] = Field({}, description="Only of a dry run: the number of tasks in each state.")
    until: datetime | None = Field(None, description="Only of a dry run: younger tasks do not belong to it.")
    newest: list[TaskSummary] = Field([], description="Only of a dry run: some of the tasks, the newest first.")


class BulkActQuery(PageQuery):
    """Filters for bulk acts."""

    namespace: Text | None = None
    state: State | None = None
    cursor: UUID | None = Field(None, description="The `next` of the previous page.")


BulkActPage = Annotated[BulkActQuery, Depends(in_namespace(BulkActQuery))]
BulkActId = Annotated[UUID, Path()]


@router.post(
    "",
    status_code=201,
    response_model=BulkAct,
    response_model_exclude_unset=True,
    responses={200: {"model": BulkAct, "description": "A dry run"}, **problems.documented(404, 409, 413, 415)},
    openapi_extra=body.documented(BulkRequest.model_json_schema()),
)
def start_bulk_act(sent: body.TaskBody, database: Database, response: Response, actor: Actor) -> dict[str, Any]:
    """Starts an act on all tasks that match a query, within the bounds of the key. An orchestrator works it off, the
    oldest task first, at the given rate; tasks that are created later are not included. Replaying needs `tasks:replay`
    too, labelling `tasks:label`; a dry run does not."""
    asked = body.parse_model(BulkRequest, sent)
    check_private(asked.labels or (), actor.key)
    with database.begin() as connection:
        planned = plan_of(connection, asked, actor.key)
        if asked.dry_run:
            response.status_code = 200
            return preview(connection, planned, actor)
        return store.start(connection, planned, actor)


@router.get("", response_model=ItemPage[BulkAct], response_model_exclude_unset=True)
def list_bulk_acts(query: BulkActPage, database: Statements, key: Caller) -> Page:
    """Bulk acts, the newest first. Keys that are bound to agents, capabilities or a tenant see those that they have
    started. An act that has ended is kept for 90 days."""
    with database.connect() as connection:
        return store.list_acts(
            connection, key, namespace=query.namespace, state=query.state, limit=query.limit, before=query.cursor
        )


@router.get(
    "/{bulk_act_id}", response_model=BulkAct, response_model_exclude_unset=True, responses=problems.documented(404)
)
def get_bulk_act(bulk_act_id: BulkActId, database: Statements, key: Caller) -> dict[str, Any]:
    """One bulk act and its progress."""
    with database.connect() as connection:
        return store.get(connection, bulk_act_id, key)


@router.post(
    "/{bulk_act_id}/stop",
    response_model=BulkAct,
    response_model_exclude_unset=True,
    responses=problems.documented(404),
)
def stop_bulk_act(bulk_act_id: BulkActId, database: Database, actor: Actor) -> dict[str, Any]:
    """Stops a bulk act: no task is acted on after the answer. What was done stays. One that has ended stays as it is.
    Needs the permission of the act."""
    with database.begin() as connection:
        return store.stop(connection, bulk_act_id, actor)


def plan_of(connection: Connection, asked: BulkRequest, key: Key) -> Plan:
    """Return what a request would do.

    Raises:
        InvalidInput: the query is wrong.
        Forbidden: it names what the key must not reach or know.
    """
    try:
        filters = TaskQuery.model_validate({"query": asked.query})
    except ValidationError as error:
        raise InvalidInput(f"The query is not valid: {'; '.join(faults_of(error))}.") from None
    if names_private_label({"label": filters.label}):
        raise InvalidInput("The query of a bulk act is stored and shown, so it must not name a private label.")
    named = filters.namespace if "namespace" in filters.model_fields_set else None
    filters = filters.model_copy(update={"namespace": key.scope.namespace_of(named)})
    chosen = filters.chosen(connection, key)
    return store.plan(connection, asked.act, asked.query, chosen, asked.options, asked.rate, until=asked.created_before)


def preview(connection: Connection, planned: Plan, actor: Actor) -> dict[str, Any]:
    """Return a dry run, in the form of a bulk act."""
    return {
        "id": None,
        "namespace": planned.chosen.namespace,
        "act": planned.act,
        "query": planned.query,
        "options": planned.options,
        "rate": planned.rate,
        "state": None,
        "matched": planned.matched,
        "more": planned.more,
        **dict.fromkeys(("done", "failed", "skipped"), 0),
        "failures": [],
        "created_at": None,
        "created_by": str(actor),
        "ended_at": None,
        "stopped_by": None,
        "by_state": planned.by_state,
        "until": planned.until,
        "newest": queries.search_tasks(connection, planned.chosen, limit=SHOWN).items,
    }
