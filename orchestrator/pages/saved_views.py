"""Saved views: named queries of the list of tasks, for their owner or for all readers of a namespace."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Response
from sqlalchemy import Connection, text

from orchestrator.api.actors import Actor
from orchestrator.api.parameters import Database
from orchestrator.pages.access import Form
from orchestrator.pages.forms import done
from orchestrator.pages.rendering import Page
from shared.access.actors import Key
from shared.access.roles import Permission
from shared.access.scope import DEFAULT_NAMESPACE
from shared.audit import log
from shared.errors import Conflict, Forbidden, InvalidInput, NotFound
from shared.tasks.task_query import LONGEST, names_private_label, parse_query

LONGEST_NAME = 100
MOST = 30
"""Views of one owner, and shared views of a namespace."""

# Shared views name agents that a key with narrower bounds may not know.
SEEN = "namespace = :namespace AND (owner = :owner OR owner IS NULL AND :sees_shared)"
LIST = text(
    "SELECT id, name, query, owner IS NULL AS shared, maker = :owner OR :may_delete AS is_own "  # noqa: S608
    f"FROM saved_views WHERE {SEEN} ORDER BY owner IS NULL, name"
)
COUNT = text("SELECT count(*) FROM saved_views WHERE namespace = :namespace AND owner IS NOT DISTINCT FROM :of")
SAVE = text(
    "INSERT INTO saved_views (namespace, owner, name, query, maker, created_by) "
    "VALUES (:namespace, :of, :name, :query, :owner, :created_by) "
    "ON CONFLICT (namespace, COALESCE(owner, ''), name) DO NOTHING RETURNING id"
)
DELETE = text(
    f"DELETE FROM saved_views WHERE id = :id AND {SEEN} AND (maker = :owner OR :may_delete) "  # noqa: S608
    "RETURNING name, query, owner IS NULL AS shared"
)

DONE = {"save": "The view was saved.", "delete": "The view was deleted."}

router = APIRouter(route_class=Page, include_in_schema=False)


@router.post("/tasks/save-view")
def save_view(form: Form, database: Database, actor: Actor) -> Response:
    """Saves the query of the list under a name."""
    name, query, shared = form.get("name", "").strip(), form.get("query", "").strip(), "shared" in form
    _check(name, query)
    if shared and not may_share(actor.key):
        raise Forbidden("A login that is bound to agents, capabilities or a tenant must not share views.")
    values = {**_values(actor.key), "of": None if shared else actor.key.identity}
    values |= {"name": name, "query": query, "created_by": str(actor)}
    with database.begin() as connection:
        if connection.execute(COUNT, values).scalar_one() >= MOST:
            raise Conflict(f"There are {MOST} views already, and that is the most. Delete one.")
        id = connection.scalar(SAVE, values)
        if id is None:
            raise Conflict(f"There is a view {name!r} already. Choose another name, or delete that one.")
        facts = {"name": name, "query": query, "shared": shared}
        log.record(connection, actor, "view.save", id, namespace=values["namespace"], after=facts)
    return done("/tasks", "save", q=query)


@router.post("/tasks/delete-view")
def delete_view(form: Form, database: Database, actor: Actor) -> Response:
    """Deletes a view."""
    try:
        view_id = UUID(form.get("view", ""))
    except ValueError:
        raise InvalidInput("`view` must be the id of a view.") from None
    values = _values(actor.key)
    with database.begin() as connection:
        gone = connection.execute(DELETE, {"id": view_id, **values}).mappings().one_or_none()
        if gone is None:
            raise NotFound(f"There is no view {view_id} that this login may delete.")
        log.record(connection, actor, "view.delete", view_id, namespace=values["namespace"], before=dict(gone))
    return done("/tasks", "delete")


def views_of(connection: Connection, key: Key) -> list[dict[str, Any]]:
    """Return the views that a key may see: its own, and those that are shared in its namespace."""
    return [dict(row) for row in connection.execute(LIST, _values(key)).mappings()]


def may_share(key: Key) -> bool:
    """Return whether a key may see and save shared views."""
    return not key.scope.is_partial


def _values(key: Key) -> dict[str, Any]:
    return {
        "namespace": key.scope.namespace or DEFAULT_NAMESPACE,
        "owner": key.identity,
        "sees_shared": may_share(key),
        "may_delete": may_share(key) and key.may(Permission.KEYS_MANAGE),
    }


def _check(name: str, query: str) -> None:
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise InvalidInput(f"The name of a view must have 1 to {LONGEST_NAME} printable characters.")
    if not query or len(query) > LONGEST or "\x00" in query:
        raise InvalidInput("A view must have a query, like `state:failed since:1d`.")
    if names_private_label(parse_query(query)):
        raise InvalidInput("The query of a view is stored and shown, so it must not name a private label.")
