"""Analytics: what ended work cost and how long it took, by agent, version, model, tenant key and more, over time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request, Response
from markupsafe import Markup
from pydantic import Field
from sqlalchemy import Connection, text

from orchestrator.alerts.detector import Signal
from orchestrator.alerts.history import ANOMALY, begins_at
from orchestrator.api.auth import Caller
from orchestrator.api.parameters import StrictQuery, Text, in_namespace
from orchestrator.observe import stats
from orchestrator.observe.stats import BY, By, Question
from orchestrator.pages import formats
from orchestrator.pages.access import Reading
from orchestrator.pages.bounds import fitting
from orchestrator.pages.charts import Bar, bar_chart, meter
from orchestrator.pages.csv_text import csv_text
from orchestrator.pages.rendering import RAW_HEADERS, Page, render
from orchestrator.pages.rights import ALERTS
from orchestrator.pages.time_ranges import RANGES, WIDTHS, Last, TimeRange, Unit
from shared.access.actors import Key

MOST_GROUPS = 1000
MOST_SHOWN = 100
MOST_ANOMALIES = 200
FILTERS = ("agent", "version", "capability", "key", "model", "function")
TIMES: tuple[Unit, ...] = ("hour", "day")
GOOD = ("succeeded", "finished")
BAD = ("failed", "expired")

ANOMALIES = text(
    """
    SELECT id, rule, agent, capability, sentence, facts->'from_hour' AS begin, facts->'hour' AS end FROM alerts
        WHERE starts_with(rule, 'anomaly.') AND namespace = :namespace AND last_seen >= :since AND first_seen < :until
          AND (CAST(:agent AS text) IS NULL OR agent = :agent)
          AND (CAST(:capability AS text) IS NULL OR capability = :capability)
        ORDER BY id DESC LIMIT :most
    """
)

Item = Mapping[str, Any]

router = APIRouter(route_class=Page, include_in_schema=False)


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure that the chart shows, and that the table is sorted by.

    Attributes:
        of: its value for an item of the statistics; None: unknown.
        shown: its text.
        signals: the anomalies that are about it.
        kinds: the kinds of work that it is counted from.
    """

    title: str
    of: Callable[[Item], float | None]
    shown: Callable[[float | None], str] = formats.number
    signals: tuple[Signal, ...] = ()
    kinds: tuple[str, ...] = ("task",)


def _outcomes(item: Item, names: Sequence[str]) -> int:
    return sum(item["outcomes"].get(name, 0) for name in names)


def _success(item: Item) -> float | None:
    judged = _outcomes(item, (*GOOD, *BAD))
    return _outcomes(item, GOOD) / judged if judged else None


def _quantile(of: str, name: str) -> Callable[[Item], float | None]:
    return lambda item: item[of][name] if item[of] else None


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _dollars(dollars: float | None) -> str:
    return formats.money((dollars or 0) * 1e6)


MeasureName = Literal["count", "failed", "success", "run", "wait", "tokens", "dollars", "saved"]
MEASURES: dict[MeasureName, Measure] = {
    "count": Measure("number", lambda item: item["count"], signals=(Signal.VOLUME,)),
    "failed": Measure("failed", lambda item: _outcomes(item, BAD), signals=(Signal.FAILURES,)),
    "success": Measure("success rate", _success, _percent, (Signal.FAILURES,)),
    "run": Measure("run time, p95", _quantile("run", "p95"), formats.duration, (Signal.RUN,), ("execution",)),
    "wait": Measure(
        "wait, p95", _quantile("wait", "p95"), formats.duration, (Signal.WAIT, Signal.QUEUE), ("execution",)
    ),
    "tokens": Measure(
        "tokens",
        lambda item: item["tokens"]["input"] + item["tokens"]["output"],
        signals=(Signal.COST,),
        kinds=("step",),
    ),
    "dollars": Measure("dollars", lambda item: item["dollars"], _dollars, (Signal.COST,), ("step",)),
    "saved": Measure("saved dollars", lambda item: item["saved_dollars"], _dollars, (), ("execution",)),
}
FIGURES: dict[str, Callable[[Item], Any]] = {
    "count": MEASURES["count"].of,
    "succeeded": lambda item: _outcomes(item, GOOD),
    "failed": MEASURES["failed"].of,
    "success_rate": _success,
    **{f"{of}_{name}_seconds": _quantile(of, name) for of in ("run", "wait") for name in ("p50", "p95", "p99")},
    "retries": lambda item: item["retries"],
    "model_calls": lambda item: item["model_calls"],
    "input_tokens": lambda item: item["tokens"]["input"],
    "output_tokens": lambda item: item["tokens"]["output"],
    "cache_read_tokens": lambda item: item["tokens"]["cache_read"],
    "cache_write_tokens": lambda item: item["tokens"]["cache_write"],
    "dollars": lambda item: item["dollars"],
    "saved_dollars": lambda item: item["saved_dollars"],
    "cache_hits": lambda item: item["cache_hits"],
}
"""The columns of the CSV file after the groups."""


class AnalyticsQuery(StrictQuery):
    """Groups, a time range, a figure and filters. A form sends empty texts for what is not chosen."""

    by: list[By | Literal[""]] = Field(["agent"], max_length=3)
    last: Last = "24h"
    measure: MeasureName = "count"
    namespace: Text = "default"
    agent: Text = ""
    version: Annotated[int, Field(ge=1, le=2**31 - 1)] | Literal[""] = ""
    capability: Text = ""
    key: Text = ""
    model: Text = ""
    function: Text = ""

    @property
    def groups(self) -> tuple[By, ...]:
        """The groups without repetition."""
        return tuple(dict.fromkeys(name for name in self.by if name)) or ("agent",)

    @property
    def filters(self) -> dict[str, Any]:
        """The filters that are set."""
        return {name: value for name in FILTERS if (value := getattr(self, name)) != ""}

    def address(self, path: str = "/analytics", **changes: Any) -> str:
        """Return the address of this page, or of another part of it, with other values."""
        values = {"last": self.last, "measure": self.measure, "namespace": self.namespace, **self.filters}
        return f"{path}?{urlencode({'by': self.groups, **values, **changes}, doseq=True)}"


@dataclass(frozen=True, slots=True)
class Anomaly:
    """An alert about a figure that deviated in some hours."""

    id: Any
    signal: str
    agent: str | None
    capability: str | None
    sentence: str
    begin: datetime
    end: datetime

    def is_about(self, item: Item) -> bool:
        """Return whether it is about a group: at least one of its names must say so, and its time."""
        named = {name: getattr(self, name) for name in ("agent", "capability") if name in item}
        times = [(item[unit], item[unit] + WIDTHS[unit]) for unit in TIMES if unit in item]
        return (
            bool(named or times)
            and all(item[name] == value for name, value in named.items())
            and all(self.overlaps(begin, end) for begin, end in times)
        )

    def overlaps(self, begin: datetime, end: datetime) -> bool:
        """Return whether it deviated between two moments."""
        return self.begin < end and begin < self.end


Asked = Annotated[AnalyticsQuery, Depends(in_namespace(AnalyticsQuery))]


@router.get("/analytics")
def show_analytics(query: Asked, request: Request, database: Reading, key: Caller) -> Response:
    """A chart over time and a table of groups."""
    now, chosen, measure = datetime.now(UTC), RANGES[query.last], MEASURES[query.measure]
    with database.connect() as connection:
        answered = _groups(connection, query, key, now)
        series = _series(connection, query, key, now)
        anomalies = _anomalies(connection, query, now) if ALERTS.permits(key) else []
    items = _sorted(answered["items"], query)
    points = _points(series["items"], chosen, now, measure, anomalies)
    values = [measure.of(item) or 0.0 for item in items]
    shown = fitting(items, lambda item: (item[name] for name in query.groups), MOST_SHOWN)
    return render(
        request,
        "analytics.html",
        query=query,
        ranges=RANGES,
        measures=MEASURES,
        measure=measure,
        names=BY,
        filters=FILTERS,
        about=answered["about"],
        age=answered["age_seconds"],
        items=shown,
        left_out=len(items) - len(shown),
        most=max([*values, 1e-9]),
        odd_ones=lambda item: [each for each in anomalies if each.is_about(item)],
        meter=meter,
        points=points,
        picture=_picture(points, measure, chosen),
        unit=chosen.unit,
    )


@router.get("/analytics/csv")
def download(query: Asked, database: Reading, key: Caller) -> Response:
    """The groups as a file for spreadsheets."""
    with database.connect() as connection:
        answered = _groups(connection, query, key, datetime.now(UTC))
    rows = [
        [*(_plain(item[name]) for name in query.groups), *(of(item) for of in FIGURES.values())]
        for item in _sorted(answered["items"], query)
    ]
    name = f"minions-{'-'.join(query.groups)}-{query.last}.csv"
    headers = {**RAW_HEADERS, "Content-Disposition": f'attachment; filename="{name}"'}
    return Response(csv_text([*query.groups, *FIGURES], rows), media_type="text/csv", headers=headers)


def _groups(connection: Connection, query: AnalyticsQuery, key: Key, now: datetime) -> dict[str, Any]:
    """Return the figures of each group."""
    is_coarse = RANGES[query.last].begins_with == "day" and "hour" not in query.groups
    asked = Question(**_asked(query, key, now), by=query.groups, coarse=is_coarse)
    return stats.answer(connection, asked, limit=MOST_GROUPS, failures=False)


def _series(connection: Connection, query: AnalyticsQuery, key: Key, now: datetime) -> dict[str, Any]:
    """Return the chosen figure over time: only what it needs is read."""
    needed = MEASURES[query.measure].kinds
    asked = Question(**_asked(query, key, now), by=(RANGES[query.last].unit,), kinds=needed)
    times = {"run": ("runs",), "wait": ("waits",)}.get(query.measure, ())
    return stats.answer(connection, asked, limit=MOST_GROUPS, times=times, failures=False)


def _asked(query: AnalyticsQuery, key: Key, now: datetime) -> dict[str, Any]:
    filters = {"namespace": query.namespace, **query.filters, **key.scope.conditions}
    return {"since": RANGES[query.last].begin(now), "until": now, "filters": filters}


def _anomalies(connection: Connection, query: AnalyticsQuery, now: datetime) -> list[Anomaly]:
    values = {
        "namespace": query.namespace,
        "since": RANGES[query.last].begin(now),
        "until": now,
        "agent": query.agent or None,
        "capability": query.capability or None,
        "most": MOST_ANOMALIES,
    }
    return [
        Anomaly(
            row.id,
            row.rule.removeprefix(ANOMALY),
            row.agent,
            row.capability,
            row.sentence,
            begins_at(row.begin),
            begins_at(row.end + 1),
        )
        for row in connection.execute(ANOMALIES, values)
        if isinstance(row.begin, int) and isinstance(row.end, int)
    ]


def _sorted(items: list[dict[str, Any]], query: AnalyticsQuery) -> list[dict[str, Any]]:
    """Return the items by time, if that is what they are grouped by first, else the largest figures first."""
    if (first := query.groups[0]) in TIMES:
        return sorted(items, key=lambda item: item[first])
    of = MEASURES[query.measure].of
    return sorted(items, key=lambda item: -(of(item) or 0.0))


def _points(
    items: list[dict[str, Any]], chosen: TimeRange, now: datetime, measure: Measure, anomalies: list[Anomaly]
) -> list[tuple[datetime, float | None, list[Anomaly]]]:
    """Return each hour or day with the figure and the anomalies that are about it."""
    by_time = {item[chosen.unit]: item for item in items}
    about = [each for each in anomalies if each.signal in measure.signals]
    return [
        (
            at,
            measure.of(by_time[at]) if at in by_time else None,
            [each for each in about if each.overlaps(at, at + chosen.width)],
        )
        for at in chosen.moments(now)
    ]


def _picture(points: list[tuple[datetime, float | None, list[Anomaly]]], measure: Measure, chosen: TimeRange) -> Markup:
    bars = [
        Bar(value, f"{at:%Y-%m-%d %H:%M} UTC: {measure.shown(value)}{', anomaly' if odd else ''}", bool(odd))
        for at, value, odd in points
    ]
    return bar_chart(bars, f"{measure.title} by the {chosen.unit}; the table below has the numbers")


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
