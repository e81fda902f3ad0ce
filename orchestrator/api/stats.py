"""Statistics over HTTP: what a key reaches, grouped and summed up."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from orchestrator.api.auth import Caller
from orchestrator.api.parameters import Statements, StrictQuery, Text, in_namespace
from orchestrator.observe import stats
from orchestrator.observe.stats import By, Question
from shared.contracts.strict_model import Moment

router = APIRouter(prefix="/v1/stats", tags=["statistics"])


class Quantiles(BaseModel):
    """Seconds; at most 19 % away from the true value."""

    p50: float
    p95: float
    p99: float


class Tokens(BaseModel):
    """Tokens of model calls. `input` includes those read from and written to the prompt cache."""

    input: int
    output: int
    cache_read: int
    cache_write: int


class FailureKind(BaseModel):
    """A kind of failure."""

    fingerprint: str | None = Field(description="Null: failures beyond the first 50 kinds of an hour.")
    type: str
    tasks: int


class StatsItem(BaseModel):
    """One group, with the values that it is grouped by. An empty text: none, or too many to have a group each."""

    model_config = ConfigDict(extra="allow")

    count: int = Field(description="Ended tasks, or steps if a model or a function is asked for.")
    outcomes: dict[str, int]
    run: Quantiles | None = Field(description="Run time of claims, or of steps.")
    wait: Quantiles | None = Field(description="From when tasks could start, or continue, to their claims.")
    retries: int
    lost: int = Field(description="Claims whose worker died.")
    model_calls: int
    tokens: Tokens
    dollars: float
    saved_dollars: float = Field(description="The cost of steps that later claims read back from the journal.")
    cache_hits: int
    failures: list[FailureKind] = Field(description="The ten most frequent ones.")


class Stats(BaseModel):
    """The answer: the largest groups first."""

    since: datetime
    until: datetime
    grain: str = Field(description="`hour` or `day`: the range begins and ends with one.")
    about: str = Field(description="`tasks` or `steps`.")
    age_seconds: float | None = Field(description="Everything that had ended this long ago is counted.")
    items: list[StatsItem]


class StatsQuery(StrictQuery):
    """A question: a time range, groups and filters."""

    namespace: Text = "default"
    since: Moment | None = Field(None, description="With a time zone; by default a day before `until`.")
    until: Moment | None = Field(None, description="With a time zone; by default now.")
    by: list[By] = Field(["agent"], max_length=6, description="Repeat it for several.")
    agent: Text | None = None
    version: int | None = Field(None, ge=1, le=2**31 - 1)
    capability: Text | None = None
    key: Text | None = Field(None, description="The tenant key.")
    model: Text | None = None
    function: Text | None = None
    limit: int = Field(100, ge=1, le=1000)


@router.get("", response_model=Stats)
def show_stats(
    query: Annotated[StatsQuery, Depends(in_namespace(StatsQuery))], database: Statements, key: Caller
) -> dict[str, Any]:
    """Counts, times and costs of ended work. They outlive the tasks: hours for 90 days, days indefinitely."""
    since, until = stats.range_of(query.since, query.until)
    filters = query.model_dump(include={"namespace", "agent", "version", "capability", "key", "model", "function"})
    question = Question(
        since=since,
        until=until,
        by=tuple(dict.fromkeys(query.by)),
        filters={**filters, **key.scope.conditions},
    )
    with database.connect() as connection:
        return stats.answer(connection, question, limit=query.limit)
