"""Costs over HTTP: what model calls cost, and what they would cost with another model or in the batch lane."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from orchestrator.api.auth import Caller
from orchestrator.api.parameters import Database, StrictQuery, Text, in_namespace
from orchestrator.api.stats import Tokens
from orchestrator.observe import costs, stats
from orchestrator.observe.costs import By, WhatIf
from orchestrator.observe.stats import Question
from shared.contracts.strict_model import Moment

router = APIRouter(prefix="/v1/costs", tags=["statistics"])


class Cost(BaseModel):
    """Calls of models and their cost; of a tool: its calls."""

    calls: int
    tokens: Tokens
    dollars: float
    what_if_dollars: float | None = Field(None, description="What the same tokens would cost.")
    unpriced_calls: int | None = Field(None, description="Calls that `what_if_dollars` leaves out: no price is known.")


class GroupCost(Cost):
    """The cost of a group, with the values that it is grouped by. An empty text: none, or too many to have a group."""

    model_config = ConfigDict(extra="allow")


class Otherwise(BaseModel):
    """The model and the lane of a what-if; null: as recorded."""

    model: str | None
    lane: str | None


class Costs(BaseModel):
    """The answer: the most expensive groups first. The total is that of all groups."""

    since: datetime
    until: datetime
    grain: str = Field(description="`hour` or `day`: the range begins and ends with one.")
    age_seconds: float | None = Field(description="Everything that had ended this long ago is counted.")
    what_if: Otherwise | None
    partial: bool = Field(description="By tool: only the latest 10,000 sub-tasks of the range are in it.")
    total: Cost
    items: list[GroupCost]


class CostsQuery(StrictQuery):
    """A question: a time range, groups, filters and what-ifs."""

    namespace: Text = "default"
    since: Moment | None = Field(None, description="With a time zone; by default a day before `until`.")
    until: Moment | None = Field(None, description="With a time zone; by default now.")
    by: list[By] = Field(["agent"], max_length=6, description="Repeat it for several. `tool`: alone or with `agent`.")
    what_if: list[Text] = Field([], max_length=2, description="`model=NAME`, `lane=batch` or `lane=direct`.")
    agent: Text | None = None
    version: int | None = Field(None, ge=1, le=2**31 - 1)
    capability: Text | None = None
    key: Text | None = Field(None, description="The tenant key.")
    model: Text | None = None
    limit: int = Field(100, ge=1, le=1000)


@router.get("", response_model=Costs, response_model_exclude_unset=True)
def show_costs(
    query: Annotated[CostsQuery, Depends(in_namespace(CostsQuery))], database: Database, key: Caller
) -> dict[str, Any]:
    """Costs of model calls, by agent, version, model, tenant key, tool, hour or day. They outlive the tasks."""
    since, until = stats.range_of(query.since, query.until)
    by = tuple(dict.fromkeys(query.by))
    what_if = WhatIf.parse(query.what_if)
    costs.check(by, what_if)
    filters = query.model_dump(include={"namespace", "agent", "version", "capability", "key", "model"})
    question = Question(
        since=since,
        until=until,
        by=tuple(name for name in by if name != "tool"),
        filters={**filters, **key.scope.conditions},
    )
    with database.connect() as connection:
        return costs.answer(connection, question, by, what_if, limit=query.limit)
