"""Dead letters, and replaying many tasks."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID, uuid4

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, text

from orchestrator.api import body, problems
from orchestrator.api.actors import Actor
from orchestrator.api.masking import Error, PayloadText
from orchestrator.api.parameters import Database, ItemPage, PageQuery, Statements, Text, in_namespace
from orchestrator.api.rights import RULES
from orchestrator.dead_letters import dead_letters
from orchestrator.replay import replay_many
from orchestrator.task_acts import check_conversation
from shared.access.actors import Key
from shared.audit import log
from shared.contracts.strict_model import Moment
from shared.errors import InvalidInput, NotFound
from shared.tasks import queries
from shared.tasks.queries import Page, TaskFilter
from shared.tasks.states import FINAL, State

MAX_PAGE = 500
FUNCTION_VERSION = text(
    "SELECT v.id FROM function_versions v JOIN functions f ON f.id = v.function_id "
    "WHERE f.namespace = :namespace AND f.name = :name AND v.number = :number"
)

router = APIRouter(prefix="/v1", tags=["replays"])


class DeadLetterQuery(PageQuery):
    """Filters for failures."""

    namespace: Text = "default"
    agent: Text | None = None
    cursor: Text = Field("", description="The `next` of the previous page.")


DeadLetterPage = Annotated[DeadLetterQuery, Depends(in_namespace(DeadLetterQuery))]


class DeadLetter(BaseModel):
    """Failures of one kind that have no replay."""

    fingerprint: str
    type: str | None
    message: PayloadText = Field(description="The message of the latest failure.")
    tasks: int
    exhausted: int = Field(
        description="How many of them used all their attempts; the others failed with an error that is not retried."
    )
    agents: list[str | None]
    first_at: datetime
    last_at: datetime
    example: UUID = Field(description="The latest of the tasks.")


class ReplaysRequest(BaseModel):
    """Which tasks to replay, and how. A task must match all given filters."""

    model_config = ConfigDict(extra="forbid")

    namespace: Text = "default"
    states: list[State] = Field([State.FAILED], min_length=1)
    agent: Text | None = None
    capability: Text | None = None
    key: Text | None = None
    error_fingerprint: Text | None = None
    function: Text | None = Field(None, description="`NAME@NUMBER`: agents that pinned this function version.")
    created_after: Moment | None = None
    created_before: Moment | None = None
    again: bool = Field(False, strict=True, description="Also tasks that already have a replay.")
    pinned: bool = Field(
        False, strict=True, description="Run the agent versions of the original tasks, not the active ones."
    )
    new_keys: bool = Field(
        False,
        strict=True,
        description="Give the calls of the replays, and of all tasks below them, new idempotency keys.",
    )
    rate: float = Field(
        10.0, strict=True, ge=0.001, le=100_000, description="How many of the new tasks may start per second."
    )
    dry_run: bool = Field(False, strict=True, description="Only list the tasks, and replay none.")
    limit: int = Field(100, strict=True, ge=1, le=MAX_PAGE)
    cursor: UUID | None = Field(None, description="The `next` of the previous page.")
    batch: UUID | None = Field(None, description="The `batch` of the previous page.")
    start_at: Moment | None = Field(None, description="The `start_at` of the previous page.")


class Replayed(BaseModel):
    """One task: its replay, or why there is none."""

    task_id: UUID
    replayed_as: UUID | None
    error: Error


class ReplayResult(BaseModel):
    """A page. Ask for the next one with the same filters and its `next`, `batch` and `start_at`."""

    items: list[Replayed]
    next: str | None
    batch: UUID
    start_at: datetime
    matched: int | None = Field(description="The total number of tasks; on the first page only.")


@router.get("/dead-letters", response_model=ItemPage[DeadLetter])
def list_dead_letters(query: DeadLetterPage, database: Statements) -> Page:
    """Failed tasks without a replay, grouped by kind of error."""
    with database.connect() as connection:
        return dead_letters(
            connection, namespace=query.namespace, agent=query.agent, limit=query.limit, after=query.cursor
        )


@router.post(
    "/replays",
    response_model=ReplayResult,
    responses=problems.documented(404, 413, 415),
    openapi_extra=body.documented(ReplaysRequest.model_json_schema()),
)
def replay_tasks(sent: body.TaskBody, database: Database, actor: Actor) -> dict[str, Any]:
    """Submits ended tasks again, a page at a time, spread over time at the given rate."""
    asked = body.parse_model(ReplaysRequest, sent)
    if living := set(asked.states) - FINAL:
        raise InvalidInput(f"Only tasks that have ended can be replayed, not {', '.join(sorted(living))} ones.")
    batch = asked.batch or uuid4()
    with database.begin() as connection:
        chosen = _filter(connection, asked, actor.key)
        matched = (
            None
            if asked.cursor
            else sum(sum(states.values()) for states in queries.count_tasks(connection, chosen).values())
        )
        page = replay_many(
            connection, chosen, batch=batch, pinned=asked.pinned, new_keys=asked.new_keys, rate=asked.rate,
            start_at=asked.start_at, limit=asked.limit, before=asked.cursor, submitted_by=str(actor),
            submitter_key=actor.key.identity,
            check=lambda task: check_conversation(connection, task, actor.key.scope),
            dry_run=asked.dry_run,
        )  # fmt: skip
        if not asked.dry_run:
            how = {"replayed": sum(item.replayed_as is not None for item in page.items), "matched": matched}
            asked_for = asked.model_dump(exclude_unset=True, exclude={"namespace", "cursor", "batch"})
            log.record(
                connection, actor, "task.replay_many", f"batch {batch}", namespace=chosen.namespace,
                after={**how, "request": asked_for},
            )  # fmt: skip
    return {"items": page.items, "next": page.next, "batch": batch, "start_at": page.start_at, "matched": matched}


def _filter(connection: Connection, asked: ReplaysRequest, key: Key) -> TaskFilter:
    if asked.function:
        # Whether there is such a version is not for every key.
        RULES["GET /v1/functions/{name}"].check(key)
    scope = key.scope
    plain = asked.model_dump(
        include={"agent", "capability", "key", "error_fingerprint", "created_after", "created_before"}
    )
    namespace = scope.namespace_of(asked.namespace if "namespace" in asked.model_fields_set else None)
    return TaskFilter(
        **plain,
        **scope.conditions,
        namespace=namespace,
        states=tuple(asked.states),
        function_version_id=_function_version(connection, namespace, asked.function) if asked.function else None,
        unreplayed=None if asked.again else True,
        # The parent of the failed task runs again with it, unless the request names the parent's agent.
        own_failure=None if asked.agent else True,
    )


def _function_version(connection: Connection, namespace: str, written: str) -> UUID:
    name, _, number = written.partition("@")
    if not number.isdecimal() or len(number) > 9:
        raise InvalidInput(f"A function version must be written NAME@NUMBER, not {written!r}.")
    values = {"namespace": namespace, "name": name, "number": int(number)}
    found: UUID | None = connection.scalar(FUNCTION_VERSION, values)
    if found is None:
        raise NotFound(f"There is no function version {written!r}. `minion functions show {name}` lists them.")
    return found
