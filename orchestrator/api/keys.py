"""API keys over HTTP: create, list, rotate, revoke. The text of a key is in one answer only."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, BaseModel, Field, StringConstraints
from sqlalchemy import Connection

from orchestrator.api import body, problems
from orchestrator.api.actors import Actor
from orchestrator.api.auth import Caller
from orchestrator.api.base_path import link
from orchestrator.api.parameters import Database, ItemPage, PageQuery, Statements
from shared.access import key_text, keys
from shared.access.actors import BOOTSTRAP
from shared.access.keys import NewKey
from shared.access.roles import Permission, Role, permissions_of
from shared.access.scope import Scope
from shared.audit import log
from shared.contracts.strict_model import Strict
from shared.notifications import publish_keys_changed
from shared.tasks.queries import Page

GRANTED = ("role", "payloads", "namespace", "agents", "capabilities", "tenant", "requests_per_minute")
TEN_YEARS = 10 * 366 * 86_400
A_DAY = 86_400
MOST_REQUESTS = 10_000_000


def _is_only_a_name(name: str) -> str:
    if name.startswith(key_text.MARK):
        raise ValueError(f"a name must not begin with {key_text.MARK}, as the texts of keys do")
    if name == BOOTSTRAP:
        raise ValueError(f"the name {BOOTSTRAP} is the administrator's key")
    if _is_an_id(name):
        raise ValueError("a name must not have the form of an id, which names one key")
    return name


def _is_an_id(name: str) -> bool:
    try:
        UUID(name)
    except ValueError:
        return False
    return True


KeyName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"), AfterValidator(_is_only_a_name)
]
Bound = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
KeyRef = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Lifetime = Annotated[
    float | None, Field(ge=1, le=TEN_YEARS, description="Seconds until the key expires; without it, it does not.")
]

router = APIRouter(prefix="/v1/keys", tags=["keys"])


class KeyRequest(Strict):
    """A new key."""

    name: KeyName = Field(description="The name of the key in records. Letters, digits, `.`, `_` and `-`.")
    role: Role = Field(strict=False, description="`minion keys roles` shows what each may do.")
    payloads: bool | None = Field(
        None, description="Whether the key sees inputs, outputs, prompts, messages and errors; by default as the role."
    )
    namespace: Bound | None = Field(None, max_length=100, description="The only namespace that the key reaches.")
    agents: list[Bound] = Field([], max_length=100, description="The only agents whose tasks it reaches.")
    capabilities: list[Bound] = Field([], max_length=100, description="The only capabilities whose tasks it reaches.")
    tenant: Bound | None = Field(
        None,
        description="The only tenant `key` whose tasks it reaches; with `*` at the end, all that begin with the rest.",
    )
    requests_per_minute: int | None = Field(
        None, ge=1, le=MOST_REQUESTS, description="Its quota in each orchestrator; without it, there is none."
    )
    expires_in: Lifetime = None


class RotateRequest(Strict):
    """Rotation of a key."""

    overlap: float = Field(
        A_DAY, ge=0, le=TEN_YEARS, description="For how many seconds the previous key stays valid: a day by default."
    )
    expires_in: Lifetime = None


class ApiKey(BaseModel):
    """A key, without its text."""

    id: UUID
    name: str
    prefix: str = Field(description="The first characters of its text.")
    status: str = Field(description="active, expired or revoked.")
    role: Role
    payloads: bool = Field(description="Whether it sees payloads.")
    namespace: str | None
    agents: list[str]
    capabilities: list[str]
    tenant: str | None
    requests_per_minute: int | None
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    last_used_at: datetime | None = Field(description="Written once a minute at most.")
    rotated_at: datetime | None
    rotated_by: str | None
    previous_prefix: str | None = Field(description="The key before the last rotation.")
    previous_until: datetime | None = Field(description="The time at which the previous key ends.")
    previous_used_at: datetime | None
    revoked_at: datetime | None
    revoked_by: str | None


class ApiKeyWithText(ApiKey):
    """A key and its text, which is shown this once."""

    key: str


class KeyPage(PageQuery):
    """Filters for keys."""

    revoked: bool = Field(False, description="Also the revoked ones.")
    cursor: UUID | None = Field(None, description="The `next` of the previous page.")


@router.get("", response_model=ItemPage[ApiKey])
def list_keys(query: Annotated[KeyPage, Query()], database: Statements, caller: Caller) -> Page:
    """The keys, the oldest first, without their texts. A key that is bound to a namespace sees those of the
    namespace."""
    with database.connect() as connection:
        rows = keys.list_keys(connection, caller.scope, revoked=query.revoked, limit=query.limit, after=query.cursor)
    items = rows[: query.limit]
    return Page(items, str(items[-1]["id"]) if len(rows) > query.limit else None)


@router.post(
    "",
    status_code=201,
    response_model=ApiKeyWithText,
    responses=problems.documented(409, 413, 415),
    openapi_extra=body.documented(KeyRequest.model_json_schema()),
)
def create_key(sent: body.SmallBody, database: Database, actor: Actor, response: Response) -> dict[str, Any]:
    """Creates a key. The answer has its text, `key`, which is stored as a hash and cannot be shown again. A key cannot
    create one that may do more than itself."""
    asked = body.parse_model(KeyRequest, sent)
    with database.begin() as connection:
        row, key = keys.create(connection, _new(asked, actor.key.scope), actor)
        _record(connection, actor, "key.create", row, {name: row[name] for name in (*GRANTED, "prefix", "expires_at")})
    response.headers["Location"] = link(f"/v1/keys/{row['id']}")
    response.headers["Cache-Control"] = "no-store"
    return {**row, "key": key}


@router.get("/{key}", response_model=ApiKey, responses=problems.documented(404))
def get_key(key: KeyRef, database: Statements, caller: Caller) -> dict[str, Any]:
    """One key, by its name, its prefix or its id, without its text."""
    with database.connect() as connection:
        return keys.get(connection, caller.scope, key)


@router.post(
    "/{key}/rotate",
    response_model=ApiKeyWithText,
    responses=problems.documented(404, 409, 413, 415),
    openapi_extra=body.documented(RotateRequest.model_json_schema(), required=False),
)
def rotate_key(
    key: KeyRef, sent: body.SmallBody, database: Database, actor: Actor, response: Response
) -> dict[str, Any]:
    """Gives a key a new text, which is shown this once; its name, role and bounds stay. The previous text stays valid
    for the overlap, so that its users have time to change it; a second rotation ends that."""
    asked = body.parse_model(RotateRequest, sent, required=False)
    lifetime = None if asked.expires_in is None else timedelta(seconds=asked.expires_in)
    overlap = timedelta(seconds=asked.overlap)
    with database.begin() as connection:
        row, text = keys.rotate(connection, key, actor, overlap=overlap, lifetime=lifetime)
        after = {name: row[name] for name in ("prefix", "previous_prefix", "previous_until", "expires_at")}
        _record(connection, actor, "key.rotate", row, after)
    publish_keys_changed()
    response.headers["Cache-Control"] = "no-store"
    return {**row, "key": text}


@router.delete("/{key}", response_model=ApiKey, responses=problems.documented(404))
def revoke_key(key: KeyRef, database: Database, actor: Actor) -> dict[str, Any]:
    """Revokes a key, and its text before the last rotation, within a second everywhere. Requests that wait or follow a
    task end too. May be repeated."""
    with database.begin() as connection:
        row = keys.revoke(connection, key, actor)
        _record(connection, actor, "key.revoke", row, {name: row[name] for name in ("prefix", "revoked_at")})
    publish_keys_changed()
    return row


def _record(connection: Connection, actor: Actor, act: str, row: dict[str, Any], after: dict[str, Any]) -> None:
    log.record(connection, actor, act, row["name"], namespace=row["namespace"], after={"id": row["id"], **after})


def _new(asked: KeyRequest, own: Scope) -> NewKey:
    namespace = asked.namespace if own.namespace is None else own.namespace_of(asked.namespace)
    return NewKey(
        name=asked.name,
        role=asked.role,
        payloads=Permission.PAYLOADS_READ in permissions_of(asked.role, payloads=asked.payloads),
        scope=Scope(
            namespace=namespace,
            agents=tuple(asked.agents),
            capabilities=tuple(asked.capabilities),
            tenant=asked.tenant,
        ),
        requests_per_minute=asked.requests_per_minute,
        lifetime=None if asked.expires_in is None else timedelta(seconds=asked.expires_in),
    )
