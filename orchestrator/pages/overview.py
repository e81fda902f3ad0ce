"""The overview: what the installation does now, what it did in the last day, and what waits for a person."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter, Request, Response
from markupsafe import Markup
from sqlalchemy import Connection

from orchestrator.api import alerts
from orchestrator.api.auth import Caller
from orchestrator.observe import stats
from orchestrator.observe.stats import Question
from orchestrator.pages.access import Reading
from orchestrator.pages.capabilities import counted_capabilities, oldest_pending
from orchestrator.pages.inbox import MOST_COUNTED, waiting_for_people
from orchestrator.pages.rendering import Page, render
from orchestrator.pages.rights import ALERTS, CAPABILITIES
from shared.access.actors import Key
from shared.tasks import queries

HOURS = 24
FIRING = alerts.AlertPage(state="firing", limit=20)
ENDED_BADLY = ("failed", "expired")
PICTURE = (240, 40)
router = APIRouter(route_class=Page, include_in_schema=False)


@router.get("/overview")
def show_overview(request: Request, database: Reading, key: Caller) -> Response:
    """The overview."""
    listed = counted_capabilities(request, database, key) if CAPABILITIES.permits(key) else []
    firing = alerts.list_alerts(FIRING, request, database, key) if ALERTS.permits(key) else None
    with database.connect() as connection:
        past = _past(connection, key)
        decisions = queries.count_up_to(connection, waiting_for_people(key.scope), MOST_COUNTED + 1)
        # They are about all namespaces together.
        oldest = oldest_pending(connection) if key.scope.is_whole else {}
    return render(
        request,
        "overview.html",
        capabilities=listed,
        oldest=oldest,
        alerts=firing,
        decisions=decisions,
        most_counted=MOST_COUNTED,
        live="/overview/live",
        **past,
    )


def sparkline(values: Sequence[float], label: str) -> Markup:
    """Return a small bar chart of one value an hour."""
    width, height = PICTURE
    most, step = max([*values, 1e-9]), width / max(len(values), 1)
    bars = [
        Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
            index * step, height - max(height * value / most, 1), step - 1.5, max(height * value / most, 1)
        )
        for index, value in enumerate(values)
    ]
    return Markup('<svg class="sparkline" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, label, Markup("").join(bars)
    )


def _past(connection: Connection, key: Key) -> dict[str, Any]:
    """Return what ended in the last day by the hour, and what today has cost."""
    now = datetime.now(UTC)
    filters = {"namespace": key.scope.namespace, **key.scope.conditions}
    first = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=HOURS - 1)
    by_hours = Question(since=first, until=now, by=("hour",), kinds=("task", "step"), filters=filters)
    hourly = stats.answer(connection, by_hours, limit=HOURS, times=(), failures=False)
    day = stats.answer(connection, Question(since=first, until=now, by=(), filters=filters), limit=1)
    by_hour = {item["hour"]: item for item in hourly["items"]}
    hours = [by_hour.get(first + timedelta(hours=hour)) for hour in range(HOURS)]
    ended = [item["count"] if item else 0 for item in hours]
    failed = [sum(item["outcomes"].get(each, 0) for each in ENDED_BADLY) if item else 0 for item in hours]
    dollars = [item["dollars"] if item else 0.0 for item in hours]
    today = [item["dollars"] for at, item in by_hour.items() if at >= now.replace(hour=0, minute=0)]
    whole = day["items"][0] if day["items"] else None
    return {
        "ended": sum(ended),
        "failed": sum(failed),
        "microdollars_today": sum(today) * 1e6,
        "run": whole and whole["run"],
        "wait": whole and whole["wait"],
        "failures": whole["failures"] if whole else [],
        "age": hourly["age_seconds"],
        "ended_picture": sparkline(ended, f"Ended tasks by the hour: {', '.join(map(str, ended))}"),
        "failed_picture": sparkline(failed, f"Failed and expired tasks by the hour: {', '.join(map(str, failed))}"),
        "cost_picture": sparkline(dollars, f"Dollars by the hour: {', '.join(f'{each:.4f}' for each in dollars)}"),
    }
