"""Limits and pauses, which keep tasks from starting, and stops, which keep them from acting."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import Connection

from orchestrator.api import rules
from orchestrator.api import stops as stops_api
from orchestrator.api.actors import Actor
from orchestrator.api.auth import Caller
from orchestrator.api.parameters import Database, StrictQuery, Text
from orchestrator.pages.access import Form, Reading
from orchestrator.pages.forms import (
    NOTHING,
    DoneQuery,
    Typed,
    as_body,
    as_number,
    as_query,
    choices,
    corrected,
    done,
    given,
    namespace_of,
    show,
)
from orchestrator.pages.rendering import Page
from shared.access.actors import Key
from shared.errors import InvalidInput
from shared.tasks import queries, stops, throttles
from shared.tasks.queries import TaskFilter
from shared.tasks.states import State
from shared.tasks.targets import EVERYTHING
from shared.tasks.throttles import LIMIT_SCOPES, SCOPES, LimitScope, Scope

MOST_COUNTED = 10_000
MOST = 50
"""Of each table."""
DONE = {
    "set": "The limit holds from now on.",
    "remove": "The limit was removed.",
    "pause": "Paused. Running tasks continue, and no other starts.",
    "resume": "Resumed.",
    "stop": "Stopped.",
    "lift": "The stop was lifted. Its tasks continue.",
}
RATES = (
    ("rate", "period_seconds"),
    ("input_tokens", "input_tokens_seconds"),
    ("output_tokens", "output_tokens_seconds"),
)

router = APIRouter(route_class=Page, include_in_schema=False)


class StopTarget(StrictQuery):
    """The target of a stop that is to be set or lifted."""

    scope: stops.Scope | None = None
    namespace: Text = ""
    name: Text = ""
    reason: Text = ""


@router.get("/limits")
def show_limits(query: Annotated[DoneQuery, Query()], request: Request, database: Reading, key: Caller) -> Response:
    """All limits, pauses and stops."""
    return _page(request, database, key, done=DONE.get(query.done))


@router.post("/limits/set")
def set_limit(
    form: Form, request: Request, database: Database, reading: Reading, actor: Actor, key: Caller
) -> Response:
    """Limits a capability, an agent, a tenant key or a model."""

    def act() -> Response:
        asked = given(form, "rate", "input_tokens", "output_tokens")
        if at_once := form.get("max_running", "").strip():
            asked["max_running"] = as_number(at_once, "The number of tasks that may run at once")
        scope, name = _limit_scope(form), form.get("name", "").strip()
        rules.set_limit(scope, name, namespace_of(form, key), as_body(asked), database, actor)
        return done("/limits", "set")

    return corrected("limit", form, act, lambda typed: _page(request, reading, key, typed))


@router.post("/limits/remove")
def remove_limit(form: Form, database: Database, actor: Actor, key: Caller) -> Response:
    """Removes a limit."""
    rules.remove_limit(_limit_scope(form), form.get("name", ""), namespace_of(form, key), database, actor)
    return done("/limits", "remove")


@router.post("/limits/pause")
def pause(form: Form, request: Request, database: Database, reading: Reading, actor: Actor, key: Caller) -> Response:
    """Pauses a capability, an agent or a tenant key."""

    def act() -> Response:
        scope, name, body = _pause_scope(form), form.get("name", "").strip(), as_body(given(form, "reason"))
        rules.pause(scope, name, namespace_of(form, key), body, database, actor)
        return done("/limits", "pause")

    return corrected("pause", form, act, lambda typed: _page(request, reading, key, typed))


@router.post("/limits/resume")
def resume(form: Form, database: Database, actor: Actor, key: Caller) -> Response:
    """Ends a pause."""
    rules.resume(_pause_scope(form), form.get("name", ""), namespace_of(form, key), database, actor)
    return done("/limits", "resume")


@router.get("/limits/stop")
def confirm_stop(query: Annotated[StopTarget, Query()], request: Request, database: Reading, key: Caller) -> Response:
    """The consequences of a stop, and the button that sets it."""
    asked = query.model_dump()
    return corrected(
        "stop",
        {name: value or "" for name, value in asked.items()},
        lambda: _confirmation(request, database, key, asked, "stop"),
        lambda typed: _page(request, database, key, typed),
    )


@router.post("/limits/stop")
def stop(form: Form, request: Request, database: Database, reading: Reading, actor: Actor, key: Caller) -> Response:
    """Stops a part of the installation, or all of it."""

    def act() -> Response:
        stops_api.stop(as_body(given(form, "scope", "namespace", "name", "reason")), database, actor)
        return done("/limits", "stop")

    return corrected("stop", form, act, lambda typed: _page(request, reading, key, typed))


@router.get("/limits/lift")
def confirm_lift(query: Annotated[StopTarget, Query()], request: Request, database: Reading, key: Caller) -> Response:
    """The consequences of lifting a stop, and the button that lifts it."""
    return _confirmation(request, database, key, query.model_dump(), "lift")


@router.post("/limits/lift")
def lift(form: Form, database: Database, actor: Actor) -> Response:
    """Lifts a stop."""
    query = as_query(stops_api.StopQuery, given(form, "scope", "namespace", "name"))
    stops_api.lift(query, database, actor)
    return done("/limits", "lift")


def _page(request: Request, database: Reading, key: Key, typed: Typed = NOTHING, done: str | None = None) -> Response:
    where: dict[str, Any] = {"namespace": key.scope.namespace, "most": MOST}
    with database.connect() as connection:
        limits, pauses = throttles.list_limits(connection, **where), throttles.list_pauses(connection, **where)
        stopped = stops.list_stops(connection, **where)
    return show(
        request,
        "limits.html",
        "Limits, pauses and stops",
        typed,
        stops=stopped,
        pauses=pauses,
        limits=[{**limit, "sentence": _sentence(limit)} for limit in limits],
        limit_scopes=choices(LIMIT_SCOPES),
        pause_scopes=choices(SCOPES),
        most=MOST,
        stop_scopes=choices(reachable_scopes(stops.SCOPES, key)),
        done=done,
        live="/limits/live",
    )


def reachable_scopes(scopes: Iterable[str], key: Key) -> list[str]:
    """Return the scopes that a key may name: one that is bound to a namespace reaches no whole installation."""
    return [scope for scope in scopes if scope != EVERYTHING or key.scope.namespace is None]


def _confirmation(request: Request, database: Reading, key: Key, asked: dict[str, Any], act: str) -> Response:
    """Show what an act would do.

    Raises:
        InvalidInput, Forbidden: there cannot be such a stop, or not for this reader.
    """
    scope = asked["scope"] or (EVERYTHING if key.scope.namespace is None else "namespace")
    namespace = key.scope.namespace_of_target(scope, asked["namespace"].strip() or None)
    target = stops.target_of(scope, namespace, asked["name"].strip() or None)
    with database.connect() as connection:
        affected = _running(connection, target.scope, target.namespace) if act == "stop" else None
    return show(
        request,
        "stop.html",
        "Stop" if act == "stop" else "Lift a stop",
        act=act,
        target=target,
        reason=asked["reason"],
        affected=affected,
        most_counted=MOST_COUNTED,
    )


def _running(connection: Connection, scope: str, namespace: str) -> int | None:
    """Return how many tasks run in the installation or a namespace; None for a part of one."""
    if scope not in (EVERYTHING, "namespace"):
        return None
    return queries.count_up_to(
        connection, TaskFilter(namespace=namespace or None, states=(State.RUNNING,)), MOST_COUNTED + 1
    )


def _limit_scope(form: dict[str, str]) -> LimitScope:
    scope = form.get("scope", "")
    if scope not in get_args(LimitScope):
        raise InvalidInput(f"A limit must be of one of {', '.join(LIMIT_SCOPES)}.")
    return scope  # type: ignore[return-value]


def _pause_scope(form: dict[str, str]) -> Scope:
    scope = form.get("scope", "")
    if scope not in get_args(Scope):
        raise InvalidInput(f"A pause must be of one of {', '.join(SCOPES)}.")
    return scope  # type: ignore[return-value]


def _sentence(limit: dict[str, Any]) -> str:
    """Return what a limit allows: `3 at once, 100 in 60 s`."""
    units = {"rate": " requests" if limit["scope"] == "model" else "", "input_tokens": " input tokens"}
    parts = [] if limit["max_running"] is None else [f"{limit['max_running']:,} at once"]
    for rate, seconds in RATES:
        if limit[rate] is not None:
            parts.append(f"{limit[rate]:,}{units.get(rate, ' output tokens')} in {limit[seconds]:g} s")
    return ", ".join(parts)
