"""The overview: what the installation does now, what it did in a time range, and what waits for a person."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Query, Request, Response
from markupsafe import Markup
from sqlalchemy import Connection

from orchestrator.api import alerts
from orchestrator.api.auth import Caller
from orchestrator.api.capabilities import oldest_pending
from orchestrator.api.parameters import StrictQuery
from orchestrator.observe import stats
from orchestrator.observe.stats import Question
from orchestrator.pages.access import Reading
from orchestrator.pages.capabilities import busiest, counted_capabilities
from orchestrator.pages.inbox import MOST_COUNTED, waiting_for_people
from orchestrator.pages.rendering import Page, render
from orchestrator.pages.rights import ALERTS, CAPABILITIES
from orchestrator.pages.time_ranges import RANGES
from shared.access.actors import Key
from shared.tasks import queries

Recent = Literal["24h", "7d", "30d"]
MOST_CAPABILITIES = 50
FIRING = alerts.AlertPage(state="firing", limit=20)
ENDED_BADLY = ("failed", "expired")
PICTURE = (240, 40)
router = APIRouter(route_class=Page, include_in_schema=False)


class OverviewQuery(StrictQuery):
    """The time range of the figures. Summing up three months takes too long for a page that renews itself."""

    last: Recent = "24h"


@router.get("/overview")
def show_overview(
    query: Annotated[OverviewQuery, Query()], request: Request, database: Reading, key: Caller
) -> Response:
    """The overview."""
    listed = counted_capabilities(request, database, key) if CAPABILITIES.permits(key) else []
    shown = listed and busiest(listed, MOST_CAPABILITIES)
    firing = alerts.list_alerts(FIRING, request, database, key) if ALERTS.permits(key) else None
    with database.connect() as connection:
        past = _past(connection, key, query.last)
        decisions = queries.count_up_to(connection, waiting_for_people(key.scope), MOST_COUNTED + 1)
        # They are about all namespaces together.
        oldest = oldest_pending(connection) if key.scope.is_whole else {}
    return render(
        request,
        "overview.html",
        capabilities=shown,
        capabilities_left=len(listed or ()) - len(shown or ()),
        oldest=oldest,
        alerts=firing,
        decisions=decisions,
        most_counted=MOST_COUNTED,
        last=query.last,
        ranges={name: RANGES[name] for name in get_args(Recent)},
        live="/overview/live",
        **past,
    )


def sparkline(values: Sequence[float], label: str) -> Markup:
    """Return a small bar chart."""
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


def _past(connection: Connection, key: Key, last: Recent) -> dict[str, Any]:
    """Return what ended in a time range, by the hour or the day, and what today has cost."""
    now, chosen = datetime.now(UTC), RANGES[last]
    unit = chosen.begins_with  # a small picture has no room for the hours of a week
    since, filters = chosen.begin(now), {"namespace": key.scope.namespace, **key.scope.conditions}
    moments = chosen.moments(now, unit)
    over_time = Question(since=since, until=now, by=(unit,), kinds=("task", "step"), filters=filters)
    series = stats.answer(connection, over_time, limit=len(moments), times=(), failures=False)
    every = Question(since=since, until=now, by=(), filters=filters, coarse=unit == "day")
    all_of_it = stats.answer(connection, every, limit=1)["items"]
    by_moment = {item[unit]: item for item in series["items"]}
    points = [by_moment.get(at) for at in moments]
    ended = [item["count"] if item else 0 for item in points]
    failed = [sum(item["outcomes"].get(each, 0) for each in ENDED_BADLY) if item else 0 for item in points]
    dollars = [item["dollars"] if item else 0.0 for item in points]
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    whole = all_of_it[0] if all_of_it else None
    return {
        "ended": sum(ended),
        "failed": sum(failed),
        "microdollars": sum(dollars) * 1e6,
        "microdollars_today": sum(each for at, each in zip(moments, dollars, strict=True) if at >= midnight) * 1e6,
        "run": whole and whole["run"],
        "wait": whole and whole["wait"],
        "failures": whole["failures"] if whole else [],
        "age": series["age_seconds"],
        "ended_picture": sparkline(ended, f"Ended tasks by the {unit}: {', '.join(map(str, ended))}"),
        "failed_picture": sparkline(failed, f"Failed and expired tasks by the {unit}: {', '.join(map(str, failed))}"),
        "cost_picture": sparkline(dollars, f"Dollars by the {unit}: {', '.join(f'{each:.4f}' for each in dollars)}"),
    }
