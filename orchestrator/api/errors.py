"""Kinds of errors over HTTP: how often each was seen, and whether it is resolved or ignored."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Path
from pydantic import BaseModel, Field

from orchestrator.api import body, problems
from orchestrator.api.actors import Actor
from orchestrator.api.auth import Caller
from orchestrator.api.masking import PayloadText
from orchestrator.api.parameters import Database, Namespace, Statements, StrictQuery, Text, in_namespace
from orchestrator.observe import errors, stats
from orchestrator.observe.errors import MOST_KINDS, Decision, State
from orchestrator.observe.stats import Question
from shared.access.actors import Key
from shared.audit import log
from shared.contracts.strict_model import Moment, Strict

router = APIRouter(prefix="/v1/errors", tags=["errors"])

Fingerprint = Annotated[Text, Path(description="See `GET /v1/errors`.")]


class RangeQuery(StrictQuery):
    """A time range in a namespace."""

    namespace: Text = "default"
    since: Moment | None = Field(None, description="With a time zone; by default a day before `until`.")
    until: Moment | None = Field(None, description="With a time zone; by default now.")

    def question(self, key: Key, **filters: Any) -> Question:
        """Return the question for what a key reaches."""
        since, until = stats.range_of(self.since, self.until)
        reached = {"namespace": self.namespace, **filters, **key.scope.conditions}
        return Question(since=since, until=until, filters=reached)


class ErrorsQuery(RangeQuery):
    """Filters for kinds of errors."""

    agent: Text | None = None
    state: list[State] = Field([], description="Only kinds in one of these states; by default all.")
    limit: int = Field(100, ge=1, le=MOST_KINDS)


class ErrorVersion(BaseModel):
    """The failures of one version of an agent."""

    agent: str = Field(description="Empty: there are too many agents to have a group each.")
    version: int | None
    tasks: int


class SeenAgain(BaseModel):
    """The first failure since a kind of error was resolved."""

    task_id: UUID
    at: datetime
    agent: str | None
    version: int | None


class ErrorKind(BaseModel):
    """One kind of error."""

    fingerprint: str
    type: str = Field(examples=["tool_error"])
    message: PayloadText = Field(description="The message of the latest failure; null after its task was deleted.")
    tasks: int = Field(description="The number of tasks that failed with it in the time range.")
    share: float = Field(description="Of all failures in the time range.")
    first_at: datetime = Field(description="If the first task was deleted: the hour or day, within the time range.")
    last_at: datetime
    versions: list[ErrorVersion] = Field(description="The 20 that failed most often.")
    example: UUID | None = Field(description="The latest of the tasks; null after it was deleted.")
    state: State = Field(description="`reopened`: it was resolved, and a task has failed with it since then.")
    reason: str | None
    changed_at: datetime | None = Field(description="When it was resolved or ignored.")
    changed_by: str | None
    seen_again: SeenAgain | None


class ErrorCount(BaseModel):
    """The number of failures in an hour or a day."""

    at: datetime
    tasks: int


class ErrorKinds(BaseModel):
    """The kinds of errors of a time range, the most frequent first."""

    since: datetime
    until: datetime
    grain: str = Field(description="`hour` or `day`: the range begins and ends with one.")
    age_seconds: float | None = Field(description="Everything that had ended this long ago is counted.")
    tasks: int = Field(description="All failures in the time range.")
    other_tasks: int = Field(description="Those beyond the first 50 kinds of an hour.")
    kinds: int = Field(description="The number of kinds in the chosen states.")
    all_kinds: int = Field(description="The number of kinds in all states.")
    items: list[ErrorKind]


class ErrorTrend(ErrorKind):
    """One kind of error with its number by the hour or the day."""

    since: datetime
    until: datetime
    grain: str
    trend: list[ErrorCount] = Field(description="Hours or days without a failure are missing.")


class ErrorDecision(Strict):
    """What is decided about a kind of error."""

    state: Decision = Field(description="`resolved` until a task fails with it again, `ignored`, or `open`.")
    reason: str | None = Field(None, min_length=1, max_length=500, pattern=r"^[^\x00]*$")


class DecidedError(BaseModel):
    """What was decided about a kind of error."""

    namespace: str
    fingerprint: str
    state: Decision
    reason: str | None
    changed_at: datetime | None
    changed_by: str | None


@router.get("", response_model=ErrorKinds)
def list_errors(
    query: Annotated[ErrorsQuery, Depends(in_namespace(ErrorsQuery))], database: Statements, key: Caller
) -> dict[str, Any]:
    """Kinds of errors by fingerprint, the most frequent first."""
    with database.connect() as connection:
        question = query.question(key, agent=query.agent)
        found = errors.list_errors(connection, question, states=query.state or errors.STATES, limit=query.limit)
    return {**found, "items": [_visible(item, key) for item in found["items"]]}


@router.get("/{fingerprint}", response_model=ErrorTrend, responses=problems.documented(404))
def show_error(
    fingerprint: Fingerprint,
    query: Annotated[RangeQuery, Depends(in_namespace(RangeQuery))],
    database: Statements,
    key: Caller,
) -> dict[str, Any]:
    """One kind of error, with its number by the hour or the day."""
    with database.connect() as connection:
        return _visible(errors.get_error(connection, query.question(key), fingerprint), key)


@router.put(
    "/{fingerprint}",
    name="decide_error",
    response_model=DecidedError,
    responses=problems.documented(404, 413, 415),
    openapi_extra=body.documented(ErrorDecision.model_json_schema()),
)
def decide(
    fingerprint: Fingerprint, query: Namespace, sent: body.TaskBody, database: Database, actor: Actor
) -> dict[str, Any]:
    """Resolves, ignores or reopens a kind of error. A resolved one is reopened when a task fails with it again."""
    asked = body.parse_model(ErrorDecision, sent)
    where = query.namespace
    question = RangeQuery(namespace=where).question(actor.key)
    with database.begin() as connection:
        before = errors.find_decision(connection, where, fingerprint)
        decided = errors.decide(connection, question, fingerprint, asked.state, reason=asked.reason, who=str(actor))
        after = {"state": decided["state"], "reason": decided["reason"]}
        log.record(connection, actor, "error.set", fingerprint, namespace=where, before=before, after=after)
    return decided


def _visible(item: dict[str, Any], key: Key) -> dict[str, Any]:
    """Return a kind of error without what operators wrote about it, for a key of less than a namespace."""
    return {**item, "reason": None, "changed_by": None} if key.scope.is_partial else item
