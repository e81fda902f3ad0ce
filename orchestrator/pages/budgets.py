"""Standing budgets: the use of each in its present period, and setting and removing one."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from orchestrator.api import standing_budgets as api
from orchestrator.api.actors import Actor
from orchestrator.api.auth import Caller
from orchestrator.api.parameters import Database
from orchestrator.pages.access import Form, Reading
from orchestrator.pages.forms import (
    NOTHING,
    DoneQuery,
    Typed,
    as_amount,
    as_body,
    as_number,
    as_query,
    choices,
    corrected,
    done,
    given,
    show,
)
from orchestrator.pages.limits import reachable_scopes
from orchestrator.pages.rendering import Page
from shared.access.actors import Key
from shared.tasks import standing_budgets
from shared.tasks.standing_budgets import MAX_TOKENS, ON_BREACH, PERIODS, SCOPES

MOST = 100
DONE = {
    "set": "The budget holds from now on.",
    "remove": "The budget was removed. Tasks that waited for it continue.",
}

router = APIRouter(route_class=Page, include_in_schema=False)


@router.get("/budgets")
def show_budgets(query: Annotated[DoneQuery, Query()], request: Request, database: Reading, key: Caller) -> Response:
    """All standing budgets."""
    return _page(request, database, key, done=DONE.get(query.done))


@router.post("/budgets/set")
def set_budget(
    form: Form, request: Request, database: Database, reading: Reading, actor: Actor, key: Caller
) -> Response:
    """Sets a budget, in place of the one of the same scope, name and period."""

    def act() -> Response:
        asked = given(form, "scope", "namespace", "name", "period", "timezone", "on_breach", "tokens", "dollars")
        if asked.get("scope") == "installation":
            asked.pop("namespace", None)
        if "tokens" in asked:
            asked["tokens"] = as_number(asked["tokens"], "The number of tokens", MAX_TOKENS)
        if "dollars" in asked:
            asked["dollars"] = as_amount(asked["dollars"], "The number of dollars")
        api.set_budget(as_body(asked), database, actor)
        return done("/budgets", "set")

    return corrected("budget", form, act, lambda typed: _page(request, reading, key, typed))


@router.post("/budgets/remove")
def remove_budget(form: Form, database: Database, actor: Actor) -> Response:
    """Removes a budget, with the record of its use."""
    query = as_query(api.BudgetQuery, given(form, "scope", "namespace", "name", "period"))
    api.remove_budget(query, database, actor)
    return done("/budgets", "remove")


def _page(request: Request, database: Reading, key: Key, typed: Typed = NOTHING, done: str | None = None) -> Response:
    with database.connect() as connection:
        budgets = standing_budgets.list_budgets(connection, namespace=key.scope.namespace, most=MOST)
    return show(
        request,
        "budgets.html",
        "Budgets",
        typed,
        budgets=[{**budget, "bars": _bars(budget)} for budget in budgets],
        most=MOST,
        scopes=choices(reachable_scopes(SCOPES, key)),
        periods=choices(PERIODS),
        on_breach=choices(ON_BREACH),
        done=done,
    )


def _bars(budget: dict[str, Any]) -> list[dict[str, Any]]:
    """Return how much of each limit is used, in percent of it."""
    limited = [(what, budget[what]) for what in ("dollars", "tokens") if budget[what]["limit"] is not None]
    return [
        {**amount, "what": what, "percent": min(100 * (amount["spent"] + amount["reserved"]) / amount["limit"], 100)}
        for what, amount in limited
    ]
