"""Logins of browsers over HTTP: list and end them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from orchestrator.api import problems
from orchestrator.api.actors import Actor
from orchestrator.api.auth import Caller
from orchestrator.api.parameters import Database, ItemPage, PageQuery, Statements, StrictQuery, Text
from shared.access import sessions
from shared.access.roles import Role
from shared.audit import log
from shared.notifications import publish_keys_changed
from shared.tasks.queries import Page

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])


class LoginSession(BaseModel):
    """A login of a browser."""

    id: UUID
    user: str = Field(description="`key:` and the name of the key, or `oidc:` and the name of the user.")
    kind: Literal["oidc", "key", "administrator"]
    status: str = Field(description="active, expired, or ended: by its user, by a revocation, or with its key.")
    role: Role
    namespace: str | None
    tenant: str | None
    created_at: datetime
    last_used_at: datetime = Field(description="Written once a minute at most.")
    expires_at: datetime = Field(description="When it ends, however much it is used.")
    address: str | None
    user_agent: str | None
    ended_at: datetime | None
    ended_by: str | None


class Ended(BaseModel):
    """Logins that were ended."""

    ended: list[UUID]


class SessionPage(PageQuery):
    """Filters for logins."""

    ended: bool = Field(False, description="Also those that are over. They are kept for a week.")
    cursor: UUID | None = Field(None, description="The `next` of the previous page.")


class OfUser(StrictQuery):
    """A user."""

    user: Text = Field(description="As the list names it: `oidc:alice@example.com`, `key:ci`.")


@router.get("", response_model=ItemPage[LoginSession])
def list_sessions(query: Annotated[SessionPage, Query()], database: Statements, caller: Caller) -> Page:
    """The logins of browsers, the newest first. A key that is bound to a namespace sees those of the namespace."""
    with database.connect() as connection:
        rows = sessions.list_logins(connection, caller.scope, ended=query.ended, limit=query.limit, before=query.cursor)
    items = rows[: query.limit]
    return Page(items, str(items[-1]["id"]) if len(rows) > query.limit else None)


@router.delete("/{session_id}", response_model=LoginSession, responses=problems.documented(404))
def end_session(session_id: UUID, database: Database, actor: Actor) -> dict[str, Any]:
    """Ends a login within a second everywhere. Requests that wait or follow a task end too. May be repeated."""
    with database.begin() as connection:
        row = sessions.end(connection, actor.key.scope, session_id, str(actor))
        _record(connection, actor, row["user"], row["namespace"], [session_id])
    publish_keys_changed()
    return row


@router.delete("", response_model=Ended)
def end_sessions_of_user(query: Annotated[OfUser, Query()], database: Database, actor: Actor) -> dict[str, Any]:
    """Ends all logins of a user, as for one."""
    with database.begin() as connection:
        ended = sessions.end_all(connection, actor.key.scope, query.user, str(actor))
        _record(connection, actor, query.user, actor.key.scope.namespace, ended)
    publish_keys_changed()
    return {"ended": ended}


def _record(connection: Connection, actor: Actor, user: str, namespace: str | None, ended: list[UUID]) -> None:
    log.record(connection, actor, "login.revoke", user, namespace=namespace, after={"sessions": ended})
