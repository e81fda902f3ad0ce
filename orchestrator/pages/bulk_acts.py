"""Acts on all tasks of a query: the dry run, the start, the progress, the stop."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from orchestrator.api import body
from orchestrator.api import bulk_acts as api
from orchestrator.api.actors import Actor
from orchestrator.api.auth import Caller
from orchestrator.api.bulk_acts import BulkActId, BulkRequest
from orchestrator.api.parameters import Database, StrictQuery, Text
from orchestrator.bulk import store
from orchestrator.pages.access import Form, Reading
from orchestrator.pages.forms import as_amount, as_body, done
from orchestrator.pages.rendering import Page, render
from shared.access.actors import Key
from shared.errors import InvalidInput, MinionError
from shared.tasks.task_query import LONGEST

ROWS = 50
FLAGS = ("pinned", "new_keys", "again")

DONE = {
    "start": "Started. The orchestrator works it off; this page need not stay open.",
    "stop": "Stopped. What was done stays.",
}

router = APIRouter(route_class=Page, include_in_schema=False)


class NewQuery(StrictQuery):
    """The query, and the act that is tried."""

    q: Annotated[str, Query(max_length=LONGEST)] = ""
    act: store.Act | None = None
    again: bool = False


class ListQuery(StrictQuery):
    """The page."""

    cursor: UUID | None = None


class ShowQuery(StrictQuery):
    """The act that was just done."""

    done: Text = ""


@router.get("/bulk-acts")
def list_bulk_acts(query: Annotated[ListQuery, Query()], request: Request, database: Reading, key: Caller) -> Response:
    """Bulk acts, the newest first."""
    with database.connect() as connection:
        page = store.list_acts(connection, key, namespace=None, state=None, limit=ROWS, before=query.cursor)
    return render(
        request, "bulk_acts.html", acts=[_shown(act) for act in page.items], next=page.next, live="/bulk-acts/live"
    )


@router.get("/bulk-acts/new")
def plan_bulk_act(
    query: Annotated[NewQuery, Query()], request: Request, database: Reading, key: Caller, actor: Actor
) -> Response:
    """The dry run of an act on all tasks of a query, and the form that starts it."""
    form = {"act": query.act or "", "query": query.q, **({"again": "1"} if query.again else {})}
    return _planned(request, database, actor, form)


@router.post("/bulk-acts/start")
async def start_bulk_act(
    form: Form, request: Request, database: Database, reading: Reading, actor: Actor, key: Caller
) -> Response:
    """Starts a bulk act. A form with a mistake comes back with it."""
    try:
        started = await run_in_threadpool(_start, form, database, actor)
    except MinionError as error:
        if error.status not in (409, 422):
            raise
        return await run_in_threadpool(_planned, request, reading, actor, form, error)
    return done(f"/bulk-acts/{started['id']}", "start")


@router.get("/bulk-acts/{bulk_act_id}")
def show_bulk_act(
    bulk_act_id: BulkActId, query: Annotated[ShowQuery, Query()], request: Request, database: Reading, key: Caller
) -> Response:
    """One bulk act and its progress."""
    with database.connect() as connection:
        act = _shown(store.get(connection, bulk_act_id, key))
    running = act["state"] == "running"
    return render(
        request,
        "bulk_act.html",
        act=act,
        can_stop=running and key.may(store.NEEDED[act["act"]]),
        done=DONE.get(query.done),
        live="/bulk-acts/live" if running else None,
    )


@router.post("/bulk-acts/{bulk_act_id}/stop")
def stop_bulk_act(bulk_act_id: BulkActId, form: Form, database: Database, actor: Actor) -> Response:
    """Stops a bulk act."""
    api.stop_bulk_act(bulk_act_id, database, actor)
    return done(f"/bulk-acts/{bulk_act_id}", "stop")


def permitted_acts(key: Key) -> list[str]:
    """Return the acts that a key may do to many tasks."""
    return [act for act in store.ACTS if key.may(store.NEEDED[act])]


def _planned(
    request: Request, database: Reading, actor: Actor, form: dict[str, str], error: MinionError | None = None
) -> Response:
    """Return the page of the dry run of what a form asks for."""
    form = {"act": "", "query": "", **form}
    planned = None
    if form["act"] in store.ACTS and form["query"].strip():
        try:
            planned = _preview(form, database, actor)
        except MinionError as refused:
            if refused.status >= 500:
                raise
            error = error or refused
    return render(
        request,
        "bulk_new.html",
        error.status if error else 200,
        acts=permitted_acts(actor.key),
        form=form,
        planned=planned,
        problem=error and error.message,
    )


def _preview(form: dict[str, str], database: Reading, actor: Actor) -> dict[str, Any]:
    tried: dict[str, str] = {name: form[name] for name in ("act", "query", "again") if name in form}
    # The labels are not part of the choice.
    asked = _request({**tried, **({"labels": "x=x"} if form["act"] == "label" else {})})
    with database.connect() as connection:
        return api.preview(connection, api.plan_of(connection, asked, actor.key), actor)


def _start(form: dict[str, str], database: Database, actor: Actor) -> dict[str, Any]:
    asked = _request(form)
    sent = asked.model_dump_json(exclude_unset=True).encode()
    return api.start_bulk_act(sent, database, Response(), actor)


def _request(form: dict[str, str]) -> BulkRequest:
    asked: dict[str, Any] = {"act": form.get("act", ""), "query": form.get("query", "")}
    asked |= {name: True for name in FLAGS if name in form}
    if form.get("until"):
        asked["created_before"] = form["until"]
    if form.get("reason", "").strip():
        asked["reason"] = form["reason"].strip()
    if form.get("rate", "").strip():
        asked["rate"] = as_amount(form["rate"], "The rate")
    if asked["act"] == "label":
        asked["labels"] = _labels(form.get("labels", ""))
    return body.parse_model(BulkRequest, as_body(asked))


def _labels(written: str) -> dict[str, str | None]:
    """Return the labels of a form: `env=prod case=` sets one and removes the other."""
    labels: dict[str, str | None] = {}
    for pair in written.split():
        name, separator, value = pair.partition("=")
        if not separator:
            raise InvalidInput(f"A label must be written name=value, like `env=prod`, not {pair[:50]!r}.")
        labels[name] = value or None
    if not labels:
        raise InvalidInput("At least one label must be given, like `env=prod`.")
    return labels


def _shown(act: dict[str, Any]) -> dict[str, Any]:
    """Return an act as the API shows it to the reader."""
    return api.BulkAct.model_validate(act).model_dump()
