"""Alerts by state, and one alert with its history and the tasks behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import Connection, text

from orchestrator.api import alerts as api
from orchestrator.api.actors import Actor
from orchestrator.api.alerts import REACHED, AlertPage
from orchestrator.api.auth import Caller
from orchestrator.api.parameters import Database, StrictQuery
from orchestrator.api.task_models import TaskSummary
from orchestrator.pages.access import Form, Reading
from orchestrator.pages.forms import NOTHING, DoneQuery, Typed, corrected, done, show
from orchestrator.pages.rendering import Page
from orchestrator.pages.rights import RULES
from shared.access.actors import Key
from shared.access.roles import Permission
from shared.access.scope import DEFAULT_NAMESPACE
from shared.tasks import queries
from shared.tasks.queries import reached
from shared.tasks.states import State

MOST_TASKS = 10
MOST_EARLIER = 10
# The figures of an hour are judged when it is over.
BEFORE = timedelta(hours=1)
DONE = {"acknowledge": "Acknowledged: it is not repeated, and its end is sent."}
EARLIER = text(
    f"SELECT a.id, a.state, a.sentence, a.first_seen, a.resolved_at FROM alerts a WHERE {REACHED} "  # noqa: S608
    "AND a.rule = :rule AND a.subject = :subject AND a.namespace IS NOT DISTINCT FROM :namespace AND a.id < :id "
    "ORDER BY a.id DESC LIMIT :most"
)

router = APIRouter(route_class=Page, include_in_schema=False)


class AlertsQuery(StrictQuery):
    """Filter for alerts, and the page."""

    state: Literal["", "firing", "acknowledged", "silenced", "resolved", "all"] = ""
    cursor: UUID | None = None


@router.get("/alerts")
def list_alerts(query: Annotated[AlertsQuery, Query()], request: Request, database: Reading, key: Caller) -> Response:
    """The alerts, the newest first."""
    is_all = query.state == "all"
    asked = AlertPage(state=None if is_all else query.state or None, all=is_all, cursor=query.cursor)
    page = api.list_alerts(asked, request, database, key)
    return show(
        request,
        "alerts.html",
        "Alerts",
        alerts=page["items"],
        state=query.state,
        next=page["next"] and {"state": query.state, "cursor": page["next"]},
        next_text="Older alerts",
        live="/alerts/live" if query.cursor is None else None,
    )


@router.get("/alerts/{alert_id}")
def show_alert(
    alert_id: UUID, query: Annotated[DoneQuery, Query()], request: Request, database: Reading, key: Caller
) -> Response:
    """One alert."""
    return _page(request, database, key, alert_id, done=DONE.get(query.done))


@router.post("/alerts/{alert_id}/acknowledge")
def acknowledge(
    alert_id: UUID, form: Form, request: Request, database: Database, reading: Reading, actor: Actor, key: Caller
) -> Response:
    """Acknowledges an alert."""

    def act() -> Response:
        api.acknowledge_alert(alert_id, request, database, actor)
        return done(f"/alerts/{alert_id}", "acknowledge")

    return corrected("acknowledge", form, act, lambda typed: _page(request, reading, key, alert_id, typed))


def _page(
    request: Request, database: Reading, key: Key, alert_id: UUID, typed: Typed = NOTHING, done: str | None = None
) -> Response:
    alert = api.get_alert(alert_id, request, database, key)
    terms = terms_of(alert) if RULES["GET /tasks"].permits(key) else {}
    with database.connect() as connection:
        reach = {"within": key.scope.namespace, "threats": key.may(Permission.AUDIT_READ)}
        earlier = connection.execute(EARLIER, {**alert, **reach, "most": MOST_EARLIER}).mappings().all()
        tasks = _tasks(connection, key, alert, terms) if terms else []
    return show(
        request,
        "alert.html",
        "Alert",
        typed,
        alert=alert,
        history=_history(alert),
        earlier=earlier,
        terms=terms,
        tasks=tasks,
        done=done,
        live="/alerts/live",
    )


def terms_of(alert: Mapping[str, Any]) -> dict[str, str]:
    """Return the query for the tasks behind an alert; no terms if it is about something else."""
    rule = str(alert["rule"])
    of = {name: alert[name] for name in ("agent", "capability") if alert[name]}
    if rule in ("unserved", "pending_old", "anomaly.queue"):
        return {**of, "state": State.PENDING}
    if rule == "approval_old":
        return {**of, "state": State.WAITING}
    if rule == "dead_letters":
        return {"state": State.FAILED, "is": "unreplayed"}
    if rule.startswith("anomaly."):
        since = datetime.fromisoformat(alert["facts"].get("since") or (alert["first_seen"] - BEFORE).isoformat())
        failed = {"state": str(State.FAILED)} if rule == "anomaly.failures" else {}
        return {**of, **failed, "since": since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M")}
    return {}


def _tasks(
    connection: Connection, key: Key, alert: Mapping[str, Any], terms: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return the newest tasks behind an alert that its reader reaches."""
    since = terms.get("since")
    chosen = replace(
        reached(key.scope),
        namespace=alert["namespace"] or key.scope.namespace or DEFAULT_NAMESPACE,
        agent=terms.get("agent"),
        capability=terms.get("capability"),
        states=(State(terms["state"]),) if "state" in terms else (),
        unreplayed=True if "is" in terms else None,
        created_after=datetime.fromisoformat(since).replace(tzinfo=UTC) if since else None,
    )
    found = queries.search_tasks(connection, chosen, limit=MOST_TASKS).items
    return [TaskSummary.model_validate(task).model_dump() for task in found]


def _history(alert: Mapping[str, Any]) -> list[tuple[datetime, str]]:
    """Return the events in the life of an alert, the oldest first."""
    happened = [(alert["first_seen"], "It fired."), (alert["last_seen"], "It was last seen.")]
    if alert["acknowledged_at"]:
        happened.append((alert["acknowledged_at"], f"{alert['acknowledged_by']} acknowledged it."))
    if alert["state"] == "silenced":
        happened.append((alert["changed_at"], "A silence matches it."))
    if alert["resolved_at"]:
        happened.append((alert["resolved_at"], "It was resolved."))
    return sorted(happened, key=lambda each: each[0])
