"""Standing budgets over HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

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
from shared.tasks import standing_budgets
from shared.tasks.standing_budgets import MAX_DOLLARS, MAX_TOKENS, MIN_DOLLARS, OnBreach, Period, Scope
from shared.tasks.targets import Target

router = APIRouter(prefix="/v1/budgets", tags=["standing budgets"])


class Amount(BaseModel):
    """What is used of a limit in the current period."""

    limit: int | float | None
    spent: int | float
    reserved: int | float = Field(description="By running calls: the most that they may use.")


class BudgetAlert(BaseModel):
    """This share of a limit was used up, in percent."""

    percent: int
    at: datetime


class StandingBudget(BaseModel):
    """Limits on what models use in each period, and the use in the current one."""

    id: UUID
    scope: Scope
    namespace: str | None = Field(description="Null for the whole installation.")
    name: str | None = Field(description="Of the agent, the tenant key or the model.")
    period: Period
    timezone: str
    tokens: Amount
    dollars: Amount
    on_breach: OnBreach
    period_start: datetime
    period_end: datetime
    alerts: list[BudgetAlert] = Field(description="Of the current period.")
    created_at: datetime
    created_by: str | None


class StandingBudgets(BaseModel):
    """All standing budgets."""

    items: list[StandingBudget]


class BudgetRequest(BaseModel):
    """A budget of the whole `installation`, a `namespace`, or an `agent`, tenant `key` or `model` by its name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    scope: Scope
    namespace: str | None = Field(None, description="For a scope with a name: `default` if it is left out.")
    name: str | None = None
    period: Period
    timezone: str = Field("UTC", max_length=100, description="The time zone of the period, such as `Europe/Berlin`.")
    tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    dollars: float | None = Field(None, ge=MIN_DOLLARS, le=MAX_DOLLARS)
    on_breach: OnBreach = Field("wait", description="What happens to a task whose next call does not fit.")


class BudgetQuery(StrictQuery):
    """The budget to remove."""

    scope: Scope
    namespace: Text | None = None
    name: Text | None = None
    period: Period


@router.get("", response_model=StandingBudgets)
def list_budgets(database: Statements, key: Caller) -> dict[str, Any]:
    """List the standing budgets, that of the installation first."""
    with database.connect() as connection:
        return {"items": standing_budgets.list_budgets(connection, namespace=key.scope.namespace)}


@router.put(
    "",
    response_model=StandingBudget,
    responses=problems.documented(413, 415),
    openapi_extra=body.documented(BudgetRequest.model_json_schema()),
)
def set_budget(sent: body.TaskBody, database: Database, actor: Actor) -> dict[str, Any]:
    """Limits what models use in each period. Replaces the budget of the same scope, name and period."""
    asked = body.parse_model(BudgetRequest, sent)
    target = standing_budgets.target_of(asked.scope, _namespace(actor.key, asked), asked.name)
    with database.begin() as connection:
        before = standing_budgets.find(connection, target, asked.period)
        budget = standing_budgets.set_budget(
            connection,
            target,
            asked.period,
            tokens=asked.tokens,
            dollars=asked.dollars,
            on_breach=asked.on_breach,
            timezone=asked.timezone,
            who=str(actor),
        )
        after = standing_budgets.find(connection, target, asked.period)
        _record(connection, actor, "budget.set", target, asked.period, before=before, after=after)
        return budget


@router.delete("", status_code=204, response_class=Response, responses=problems.documented(404))
def remove_budget(query: Annotated[BudgetQuery, Query()], database: Database, actor: Actor) -> None:
    """Removes a budget, with the record of its use. Tasks that wait for it continue."""
    target = standing_budgets.target_of(query.scope, _namespace(actor.key, query), query.name)
    with database.begin() as connection:
        before = standing_budgets.find(connection, target, query.period)
        standing_budgets.remove_budget(connection, target, query.period)
        _record(connection, actor, "budget.remove", target, query.period, before=before)


def _record(connection: Connection, actor: actors.Actor, act: str, target: Target, period: str, **states: Any) -> None:
    named = f"{target.scope} {target.name}".rstrip()
    log.record(connection, actor, act, f"{named} per {period}", namespace=target.namespace or None, **states)


def _namespace(key: Key, asked: BudgetRequest | BudgetQuery) -> str | None:
    return key.scope.namespace_of_target(asked.scope, asked.namespace)
