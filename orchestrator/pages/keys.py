"""API keys: their bounds and last use, and creating, rotating and revoking one.

The text of a new key is in one answer, to the form that made it; no address shows it again.
"""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from orchestrator.api import keys as api
from orchestrator.api.actors import Actor
from orchestrator.api.auth import Caller
from orchestrator.api.keys import MOST_REQUESTS, KeyPage, KeyRef
from orchestrator.api.parameters import Database, StrictQuery
from orchestrator.pages.access import Form, Reading
from orchestrator.pages.forms import (
    NOTHING,
    DoneQuery,
    Typed,
    as_body,
    as_number,
    corrected,
    done,
    given,
    lines_of,
    show,
)
from orchestrator.pages.rendering import Page
from shared.access.actors import Key
from shared.access.roles import Role, permissions_of
from shared.access.scope import Scope

A_DAY = 86_400
LONGEST_DAYS = 3660
DONE = {"revoke": "Revoked. It is refused everywhere within a second."}

router = APIRouter(route_class=Page, include_in_schema=False)


class KeysQuery(StrictQuery):
    """The page, and whether the revoked keys are on it."""

    revoked: bool = False
    cursor: UUID | None = None


@router.get("/keys")
def list_keys(query: Annotated[KeysQuery, Query()], request: Request, database: Reading, key: Caller) -> Response:
    """The keys, the oldest first."""
    return _page(request, database, key, query)


@router.get("/keys/{key}")
def show_key(
    key: KeyRef, query: Annotated[DoneQuery, Query()], request: Request, database: Reading, caller: Caller
) -> Response:
    """One key, without its text."""
    return _key_page(request, api.get_key(key, database, caller), done=DONE.get(query.done))


@router.post("/keys/create")
def create(
    form: Form, request: Request, database: Database, reading: Reading, actor: Actor, caller: Caller
) -> Response:
    """Creates a key, and shows its text this once."""
    return corrected(
        "key",
        form,
        lambda: _key_page(request, api.create_key(as_body(_asked(form)), database, actor, Response())),
        lambda typed: _page(request, reading, caller, KeysQuery(), typed),
    )


@router.post("/keys/{key}/rotate")
def rotate(
    key: KeyRef, form: Form, request: Request, database: Database, reading: Reading, actor: Actor, caller: Caller
) -> Response:
    """Gives a key a new text, and shows it this once."""

    def act() -> Response:
        asked: dict[str, Any] = {}
        if hours := form.get("overlap_hours", "").strip():
            asked["overlap"] = as_number(hours, "The number of hours", LONGEST_DAYS * 24) * 3600
        return _key_page(
            request, api.rotate_key(key, as_body({**asked, **_lifetime(form)}), database, actor, Response())
        )

    return corrected("rotate", form, act, lambda typed: _key_page(request, api.get_key(key, reading, caller), typed))


@router.post("/keys/{key}/revoke")
def revoke(key: KeyRef, form: Form, database: Database, actor: Actor) -> Response:
    """Revokes a key."""
    row = api.revoke_key(key, database, actor)
    return done(f"/keys/{row['id']}", "revoke")


def _page(request: Request, database: Reading, caller: Key, query: KeysQuery, typed: Typed = NOTHING) -> Response:
    page = api.list_keys(KeyPage(revoked=query.revoked, cursor=query.cursor), database, caller)
    return show(
        request,
        "keys.html",
        "Keys",
        typed,
        keys=[_shown(row) for row in page.items],
        revoked=query.revoked,
        roles=[(role, role) for role in Role if permissions_of(role) <= caller.permissions],
        next=page.next and {"revoked": str(query.revoked).lower(), "cursor": page.next},
        next_text="Newer keys",
    )


def _key_page(request: Request, row: dict[str, Any], typed: Typed = NOTHING, done: str | None = None) -> Response:
    return show(request, "key.html", "Key", typed, key=_shown(row), text=row.get("key"), done=done)


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """Return a key without its text, and what it reaches as a sentence."""
    key = api.ApiKey.model_validate(row).model_dump()
    scope = Scope(
        namespace=key["namespace"],
        agents=tuple(key["agents"]),
        capabilities=tuple(key["capabilities"]),
        tenant=key["tenant"],
    )
    return {**key, "reaches": scope.description}


def _asked(form: dict[str, str]) -> dict[str, Any]:
    """Return the new key that a form describes."""
    asked = given(form, "name", "role", "namespace", "tenant")
    for name in ("agents", "capabilities"):
        if lines := lines_of(form, name):
            asked[name] = lines
    if form.get("payloads") in ("yes", "no"):
        asked["payloads"] = form["payloads"] == "yes"
    if quota := form.get("requests_per_minute", "").strip():
        asked["requests_per_minute"] = as_number(quota, "The number of requests", MOST_REQUESTS)
    return {**asked, **_lifetime(form)}


def _lifetime(form: dict[str, str]) -> dict[str, Any]:
    days = form.get("expires_days", "").strip()
    return {"expires_in": as_number(days, "The number of days", LONGEST_DAYS) * A_DAY} if days else {}
