"""Kinds of errors: which ones there are, where and since when, and the acts on one kind."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Request, Response

from orchestrator.api import errors as api
from orchestrator.api.actors import Actor
from orchestrator.api.auth import Caller
from orchestrator.api.errors import ErrorKind, ErrorsQuery, ErrorTrend, RangeQuery
from orchestrator.api.login.pages import see_other
from orchestrator.api.parameters import Database, StrictQuery, Text, in_namespace
from orchestrator.observe import errors
from orchestrator.pages.access import Form, Reading
from orchestrator.pages.bulk_acts import permitted_acts
from orchestrator.pages.charts import Bar, bar_chart
from orchestrator.pages.forms import as_body, given, namespace_of
from orchestrator.pages.rendering import Page, render
from orchestrator.pages.rights import RULES
from orchestrator.pages.time_ranges import RANGES, Last
from shared.access.actors import Key
from shared.access.scope import DEFAULT_NAMESPACE
from shared.errors import NotFound
from shared.tasks import queries
from shared.tasks.queries import TaskFilter
from shared.tasks.states import State
from shared.tasks.task_query import written_query

EXAMPLES = 5
MOST_SHOWN = 100
"""Kinds of errors."""
SHOWN = ("open", "reopened")

DONE = {
    "resolved": "Resolved. It opens again when a task fails with it.",
    "ignored": "Ignored. The list of errors hides it.",
    "open": "Opened again.",
}

router = APIRouter(route_class=Page, include_in_schema=False)


class ListQuery(StrictQuery):
    """A time range and filters."""

    last: Last = "24h"
    namespace: Text = "default"
    agent: Text = ""
    state: Literal["", "open", "reopened", "resolved", "ignored", "all"] = ""


class KindQuery(StrictQuery):
    """A time range, and what was just done."""

    last: Last = "24h"
    namespace: Text = "default"
    done: Text = ""


@router.get("/errors")
def list_errors(
    query: Annotated[ListQuery, Depends(in_namespace(ListQuery))], request: Request, database: Reading, key: Caller
) -> Response:
    """The kinds of errors of a time range, the most frequent first."""
    now = datetime.now(UTC)
    asked = ErrorsQuery(
        namespace=query.namespace,
        since=RANGES[query.last].begin(now),
        until=now,
        agent=query.agent or None,
        state=list({"": SHOWN, "all": errors.STATES}.get(query.state, (query.state,))),
        limit=MOST_SHOWN,
    )
    found = api.list_errors(asked, database, key)
    kinds = [ErrorKind.model_validate(item).model_dump() for item in found["items"]]
    return render(
        request,
        "errors.html",
        query=query,
        ranges=RANGES,
        kinds=kinds,
        left_out=found["kinds"] - len(kinds),
        hidden=found["all_kinds"] - found["kinds"],
        total=found["tasks"],
        others=found["other_tasks"],
        age=found["age_seconds"],
        live="/errors/live",
    )


@router.get("/errors/{fingerprint}")
def show_error(
    fingerprint: api.Fingerprint,
    query: Annotated[KindQuery, Depends(in_namespace(KindQuery))],
    request: Request,
    database: Reading,
    key: Caller,
) -> Response:
    """One kind of error."""
    now, chosen = datetime.now(UTC), RANGES[query.last]
    asked = RangeQuery(namespace=query.namespace, since=chosen.begin(now), until=now)
    try:
        found = api.show_error(fingerprint, asked, database, key)
    except NotFound:
        if (elsewhere := _elsewhere(asked, database, key, fingerprint)) is None:
            raise
        return see_other(_address(fingerprint, namespace=elsewhere, last=query.last))
    kind = ErrorTrend.model_validate(found).model_dump()
    counted = {each["at"]: each["tasks"] for each in kind["trend"]}
    moments = chosen.moments(now)
    return render(
        request,
        "error.html",
        query=query,
        ranges=RANGES,
        kind=kind,
        trend=[(at, counted.get(at, 0)) for at in moments],
        picture=_picture(moments, counted, chosen.unit),
        unit=chosen.unit,
        done=DONE.get(query.done),
        examples=_examples(database, key, query.namespace, fingerprint),
        can_decide=RULES["POST /errors/{fingerprint}/decide"].permits(key),
        replay_query=written_query({"error": fingerprint, "namespace": query.namespace}),
        can_replay="replay" in permitted_acts(key),
        live="/errors/live",
    )


@router.post("/errors/{fingerprint}/decide")
def decide(fingerprint: api.Fingerprint, form: Form, database: Database, actor: Actor) -> Response:
    """Resolves, ignores or reopens the kind of error."""
    where = namespace_of(form, actor.key)
    asked = {"state": form.get("state", ""), **given(form, "reason")}
    decided = api.decide(fingerprint, where, as_body(asked), database, actor)
    return see_other(_address(fingerprint, namespace=where.namespace, done=decided["state"]))


def _elsewhere(asked: RangeQuery, database: Reading, key: Key, fingerprint: str) -> str | None:
    """Return another namespace that has the kind of error: links of pages about all namespaces name none."""
    if key.scope.namespace is not None or asked.namespace != DEFAULT_NAMESPACE:
        return None
    with database.connect() as connection:
        found = errors.namespaces_of(connection, asked.question(key), fingerprint)
    return found[0] if found else None


def _examples(database: Reading, key: Key, namespace: str, fingerprint: str) -> list[dict[str, Any]]:
    chosen = TaskFilter(
        namespace=namespace, states=(State.FAILED,), error_fingerprint=fingerprint, **key.scope.conditions
    )
    with database.connect() as connection:
        return queries.search_tasks(connection, chosen, limit=EXAMPLES).items


def _picture(moments: list[datetime], counted: dict[datetime, int], unit: str) -> Any:
    bars = [Bar(counted.get(at, 0), f"{at:%Y-%m-%d %H:%M} UTC: {counted.get(at, 0)}") for at in moments]
    return bar_chart(bars, f"Failures by the {unit}; the table below has the numbers")


def _address(fingerprint: str, **query: str) -> str:
    return f"/errors/{quote(fingerprint, safe='')}?{urlencode(query)}"
