"""Capabilities: the work that waits for each, the slots that serve it, its pauses, and the workers that it needs."""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from orchestrator.api import capabilities as api
from orchestrator.api import rules
from orchestrator.api.actors import Actor
from orchestrator.api.auth import Caller
from orchestrator.api.capabilities import oldest_pending
from orchestrator.api.parameters import Database, StrictQuery, Text
from orchestrator.api.problems import STATEMENT_TIMEOUT
from orchestrator.observe import scale
from orchestrator.observe.scale import Wanted
from orchestrator.pages.access import Form, Reading
from orchestrator.pages.bounds import fitting
from orchestrator.pages.forms import as_body, done, given, namespace_of
from orchestrator.pages.rendering import Page, render
from orchestrator.pages.rights import PAUSES, RULES, SCALE
from shared.access.actors import Key
from shared.access.scope import LONGEST_NAME
from shared.errors import InvalidInput

MOST_SHOWN = 200
MOST_PAUSED = 50
"""Paused capabilities that are shown beside those."""
MOST_ADVISED = 50
"""Capabilities whose number of workers is computed: each takes a query. Those with the most work are first."""
WANTED = Wanted(wait_seconds=60.0, slots_per_worker=1, least=0, most=1000)
DONE = {"pause": "Paused. Running tasks continue, and no other starts.", "resume": "Resumed."}

router = APIRouter(route_class=Page, include_in_schema=False)


class DoneQuery(StrictQuery):
    """The act that was just done."""

    done: Text = ""


@router.get("/capabilities")
def show_capabilities(
    query: Annotated[DoneQuery, Query()], request: Request, database: Reading, key: Caller
) -> Response:
    """All capabilities."""
    listed = counted_capabilities(request, database, key)
    shown = listed and busiest(listed, MOST_SHOWN)
    paused = _pauses(database, key) if PAUSES.permits(key) else {}
    names = set(paused) if shown is None else {it["name"] for it in shown}
    alone = [(name, pauses) for name, pauses in paused.items() if name not in names]
    with database.connect() as connection:
        # They are about all namespaces together.
        oldest = oldest_pending(connection) if key.scope.is_whole else {}
        advice = _advice(connection, request, shown or []) if SCALE.permits(key) else {}
    return render(
        request,
        "capabilities.html",
        capabilities=shown,
        left_out=len(listed or ()) - len(shown or ()),
        oldest=oldest,
        paused=paused,
        paused_alone=alone[:MOST_PAUSED],
        pauses_left=len(alone) - MOST_PAUSED,
        advice=advice,
        wait_seconds=WANTED.wait_seconds,
        can_pause=RULES["POST /capabilities/pause"].permits(key),
        done=DONE.get(query.done),
        live="/capabilities/live",
    )


@router.post("/capabilities/pause")
def pause(form: Form, database: Database, actor: Actor) -> Response:
    """Pauses a capability in a namespace: running tasks continue, and no other starts."""
    sent = as_body(given(form, "reason"))
    rules.pause("capability", _name(form), namespace_of(form, actor.key), sent, database, actor)
    return done("/capabilities", "pause")


@router.post("/capabilities/resume")
def resume(form: Form, database: Database, actor: Actor) -> Response:
    """Resumes a capability in a namespace."""
    rules.resume("capability", _name(form), namespace_of(form, actor.key), database, actor)
    return done("/capabilities", "resume")


def counted_capabilities(request: Request, database: Engine, key: Key) -> list[Any] | None:
    """Return the capabilities; None if there are too many waiting tasks to count: the page has more to say."""
    try:
        listed: list[Any] = api.list_capabilities(request, database, key)["items"]
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != STATEMENT_TIMEOUT:
            raise
        return None
    return listed


def busiest(listed: list[Any], most: int) -> list[Any]:
    """Return the capabilities with the most work and slots, by name."""
    work = sorted(listed, key=lambda it: -(it["pending"] + it["queued"] + it["running"] + it["slots"]))[:most]
    return sorted(fitting(work, lambda it: (it["name"], *it["agents"][:5]), most), key=lambda it: str(it["name"]))


def _pauses(database: Engine, key: Key) -> dict[str, list[Any]]:
    """Return the pauses of each capability, in the namespaces that a key reaches."""
    found = defaultdict(list)
    for each in rules.list_pauses(database, key)["items"]:
        if each["scope"] == "capability":
            found[each["name"]].append(each)
    return found


def _advice(connection: Connection, request: Request, listed: list[Any]) -> dict[str, int]:
    """Return the number of workers that each capability needs now; one stays, though it has nothing to do."""
    lease = request.app.state.settings.lease_seconds
    return {
        it["name"]: max(
            scale.desired(scale.load_of(connection, it["name"], lease=lease), WANTED), min(it["workers"], 1)
        )
        for it in busiest(listed, MOST_ADVISED)
    }


def _name(form: dict[str, str]) -> str:
    name = form.get("name", "")
    if not 0 < len(name) <= LONGEST_NAME or "\x00" in name:
        raise InvalidInput(f"The name of a capability must have 1 to {LONGEST_NAME} characters, without U+0000.")
    return name
