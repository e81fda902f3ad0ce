"""Silences of alerts: listing, adding and ending them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from orchestrator.api import alerts as api
from orchestrator.api.actors import Actor
from orchestrator.api.alerts import MATCHERS, SilencePage
from orchestrator.api.auth import Caller
from orchestrator.api.parameters import Database, Text
from orchestrator.pages.access import Form, Reading
from orchestrator.pages.forms import NOTHING, DoneQuery, Typed, as_body, as_number, corrected, done, given, show
from orchestrator.pages.rendering import Page
from shared.access.actors import Key
from shared.errors import InvalidInput

LONGEST_HOURS = 366 * 24
DONE = {
    "add": "Silenced: alerts that match are kept, and not sent.",
    "remove": "The silence ended. Alerts that still fire are sent again.",
}

router = APIRouter(route_class=Page, include_in_schema=False)


class SilencesQuery(DoneQuery):
    """The page, and the alerts that a new silence is to match."""

    cursor: UUID | None = None
    namespace: Text = ""
    rule: Text = ""
    agent: Text = ""
    capability: Text = ""
    subject: Text = ""


@router.get("/silences")
def show_silences(
    query: Annotated[SilencesQuery, Query()], request: Request, database: Reading, key: Caller
) -> Response:
    """The silences that have not ended, the newest first."""
    wanted = query.model_dump(include={"namespace", *MATCHERS})
    typed = Typed("silence", wanted) if any(wanted.values()) else NOTHING
    return _page(request, database, key, typed, query)


@router.post("/silences/add")
def add(form: Form, request: Request, database: Database, reading: Reading, actor: Actor, key: Caller) -> Response:
    """Silences matching alerts until a time."""

    def act() -> Response:
        hours = as_number(form.get("hours", "").strip(), "The number of hours", LONGEST_HOURS)
        until = datetime.now(UTC) + timedelta(hours=hours)
        asked = given(form, "namespace", "reason", *MATCHERS)
        api.add_silence(as_body({**asked, "until": until.isoformat()}), database, actor)
        return done("/silences", "add")

    return corrected("silence", form, act, lambda typed: _page(request, reading, key, typed))


@router.post("/silences/remove")
def remove(form: Form, database: Database, actor: Actor) -> Response:
    """Ends a silence."""
    try:
        silence = UUID(form.get("silence", ""))
    except ValueError:
        raise InvalidInput("A silence is named by its id.") from None
    api.remove_silence(silence, database, actor)
    return done("/silences", "remove")


def _page(request: Request, database: Reading, key: Key, typed: Typed, query: SilencesQuery | None = None) -> Response:
    query = query or SilencesQuery()
    page = api.list_silences(SilencePage(cursor=query.cursor), database, key)
    return show(
        request,
        "silences.html",
        "Silences",
        typed,
        silences=page.items,
        done=DONE.get(query.done),
        next=page.next and {"cursor": page.next},
        next_text="Older silences",
    )
