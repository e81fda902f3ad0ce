"""Schedules: their times and the next runs; creating, changing, running, pausing and removing one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from itertools import islice
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request, Response

from orchestrator.api import schedules as api
from orchestrator.api.actors import Actor
from orchestrator.api.parameters import Database, NamedPageQuery, Namespace, Text, in_namespace
from orchestrator.api.schedules import Schedule
from orchestrator.pages.access import Form, Reading
from orchestrator.pages.forms import (
    NOTHING,
    DoneQuery,
    NamespaceDoneQuery,
    Typed,
    as_amount,
    as_body,
    as_json,
    corrected,
    done,
    given,
    show,
)
from orchestrator.pages.rendering import Page
from orchestrator.schedules import store
from shared.errors import InvalidInput

NEXT_RUNS = 5
LIVE = "/live/schedules"
DONE = {
    "create": "Stored. It runs at the times below.",
    "change": "Changed.",
    "pause": "Paused. Runs that it misses are not made up for.",
    "resume": "Resumed.",
    "remove": "Removed. Its tasks stay.",
}

router = APIRouter(route_class=Page, include_in_schema=False)


class SchedulesQuery(NamedPageQuery, DoneQuery):
    """The page, and the act that was just done."""


@router.get("/schedules")
def list_schedules(
    query: Annotated[SchedulesQuery, Depends(in_namespace(SchedulesQuery))], request: Request, database: Reading
) -> Response:
    """The schedules of a namespace, by name."""
    return _list(request, database, query)


@router.post("/schedules/create")
def create(
    query: Namespace, form: Form, request: Request, database: Database, reading: Reading, actor: Actor
) -> Response:
    """Stores a new schedule."""

    def act() -> Response:
        asked = {"name": form.get("name", "").strip(), **_times(form), "request": _request(form)}
        created = api.create_schedule(as_body(asked), query, database, Response(), actor)
        return _back(created["name"], query, "create")

    again = SchedulesQuery(namespace=query.namespace)
    return corrected("create", form, act, lambda typed: _list(request, reading, again, typed))


def _list(request: Request, database: Reading, query: SchedulesQuery, typed: Typed = NOTHING) -> Response:
    page = api.list_schedules(query, database)
    return show(
        request,
        "schedules.html",
        "Schedules",
        typed,
        schedules=[_shown(row) for row in page.items],
        namespace=query.namespace,
        done=DONE.get(query.done),
        next=page.next and {"namespace": query.namespace, "cursor": page.next},
        live=LIVE,
    )


@router.get("/schedules/{name}")
def show_schedule(
    name: Text,
    query: Annotated[NamespaceDoneQuery, Depends(in_namespace(NamespaceDoneQuery))],
    request: Request,
    database: Reading,
) -> Response:
    """One schedule."""
    return _page(request, database, name, query, done=query.done)


@router.post("/schedules/{name}/change")
def change(
    name: Text, query: Namespace, form: Form, request: Request, database: Database, reading: Reading, actor: Actor
) -> Response:
    """Changes the times of the schedule, and its task if the form has it."""

    def act() -> Response:
        asked = _times(form)
        if "others" in form and (changed := _request(form)) != api.get_schedule(name, query, reading)["request"]:
            asked["request"] = changed
        api.change_schedule(name, as_body(asked), query, database, actor)
        return _back(name, query, "change")

    return corrected("change", form, act, lambda typed: _page(request, reading, name, query, typed))


@router.post("/schedules/{name}/run")
def run(
    name: Text, query: Namespace, form: Form, request: Request, database: Database, reading: Reading, actor: Actor
) -> Response:
    """Submits the schedule's task once more, now."""

    def act() -> Response:
        task = api.run_schedule(name, b"", query, database, Response(), actor)
        return done(f"/tasks/{task['id']}", "run")

    return corrected("run", form, act, lambda typed: _page(request, reading, name, query, typed))


@router.post("/schedules/{name}/pause")
def pause(name: Text, query: Namespace, form: Form, database: Database, actor: Actor) -> Response:
    """Keeps the schedule from running."""
    api.change_schedule(name, as_body({"enabled": False}), query, database, actor)
    return _back(name, query, "pause")


@router.post("/schedules/{name}/resume")
def resume(
    name: Text, query: Namespace, form: Form, request: Request, database: Database, reading: Reading, actor: Actor
) -> Response:
    """Lets the schedule run again, from its next time on."""

    def act() -> Response:
        api.change_schedule(name, as_body({"enabled": True}), query, database, actor)
        return _back(name, query, "resume")

    return corrected("resume", form, act, lambda typed: _page(request, reading, name, query, typed))


@router.post("/schedules/{name}/remove")
def remove(name: Text, query: Namespace, form: Form, database: Database, actor: Actor) -> Response:
    """Removes the schedule."""
    api.delete_schedule(name, query, database, actor)
    return done("/schedules", "remove", namespace=query.namespace)


def _times(form: Mapping[str, str]) -> dict[str, Any]:
    """Return when a form's schedule runs, as the API takes it: null for a field that it must not have."""
    found = given(form, "cron", "timezone", "missed", "interval_seconds")
    if "interval_seconds" in found:
        found["interval_seconds"] = as_amount(found["interval_seconds"], "The number of seconds")
    return {**dict.fromkeys(("cron", "timezone", "interval_seconds")), **found}


def _request(form: Mapping[str, str]) -> dict[str, Any]:
    """Return the task of a form's schedule."""
    parts = given(form, "agent", "input", "others")
    others = as_json(parts.pop("others"), "The other fields") if "others" in parts else {}
    if not isinstance(others, dict):
        raise InvalidInput('The other fields must be a JSON object, like {"priority": 5}.')
    if "input" in parts:
        parts["input"] = as_json(parts["input"], "The input")
    return {**others, **parts}


def _back(name: str, query: Namespace, act: str) -> Response:
    return done(f"/schedules/{quote(name, safe='')}", act, namespace=query.namespace)


def _page(
    request: Request, database: Reading, name: str, query: Namespace, typed: Typed = NOTHING, done: str = ""
) -> Response:
    schedule = _shown(api.get_schedule(name, query, database))
    return show(
        request,
        "schedule.html",
        "Schedule",
        typed,
        schedule=schedule,
        runs=next_runs(schedule),
        done=DONE.get(done),
        live=LIVE,
    )


def next_runs(schedule: dict[str, Any]) -> list[datetime]:
    """Return the next times at which a schedule runs; none while it is paused."""
    first = schedule["next_at"]
    if first is None:
        return []
    timetable = store.timetable(schedule["cron"], schedule["timezone"], schedule["interval_seconds"], anchor=first)
    return [first, *islice(timetable.after(first), NEXT_RUNS - 1)]


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """Return a schedule as the API shows it to this reader, and the fields of its form."""
    schedule = Schedule.model_validate(row).model_dump()
    others = dict(schedule["request"])
    agent, has_input, sent = others.pop("agent", None), "input" in others, others.pop("input", None)
    parts = {"agent": agent, "input": _json(sent) if has_input else "", "others": _json(others) if others else ""}
    return {**schedule, **parts}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)
