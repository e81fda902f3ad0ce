"""Named API keys: create, list, rotate, revoke, and find the one that a request presents.

The text of a key is shown once, and only its digest is stored. Times are those of PostgreSQL's clock: a process whose
clock is wrong accepts neither an expired key nor one that was revoked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, RowMapping, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, TEXT

from shared.access import key_text
from shared.access.actors import BOOTSTRAP, USER, Actor, Key
from shared.access.roles import Permission, Role, permissions_of, roles_with
from shared.access.scope import Scope
from shared.errors import AmbiguousId, Conflict, Forbidden, NotFound
from shared.storable import storable

COLUMNS = (
    "id, name, prefix, role, payloads, namespace, agents, capabilities, tenant, created_at, created_by, expires_at, "
    "requests_per_minute, last_used_at, rotated_at, rotated_by, previous_prefix, previous_until, previous_used_at, "
    "revoked_at, revoked_by, "
    "CASE WHEN revoked_at IS NOT NULL THEN 'revoked' WHEN expires_at <= now() THEN 'expired' ELSE 'active' END "
    "AS status"
)
TYPES = (bindparam("agents", type_=ARRAY(TEXT)), bindparam("capabilities", type_=ARRAY(TEXT)))
CREATE = text(
    "INSERT INTO api_keys (name, prefix, hash, role, payloads, namespace, agents, capabilities, "  # noqa: S608
    "tenant, requests_per_minute, created_by, expires_at) VALUES (:name, :prefix, :hash, :role, :payloads, "
    ":namespace, :agents, :capabilities, :tenant, :requests_per_minute, :created_by, "
    "now() + CAST(:lifetime AS interval)) "
    f"ON CONFLICT (COALESCE(namespace, ''), name) WHERE revoked_at IS NULL DO NOTHING RETURNING {COLUMNS}"
).bindparams(*TYPES)
# A bound administrator sees the keys of its namespace only.
VISIBLE = "(CAST(:namespace AS text) IS NULL OR namespace = :namespace)"
LIST = text(
    f"SELECT {COLUMNS} FROM api_keys WHERE {VISIBLE} AND (:all OR revoked_at IS NULL) "  # noqa: S608
    "AND (CAST(:after AS uuid) IS NULL OR id > :after) ORDER BY id LIMIT :most"
)
NAMED = text(
    f"SELECT {COLUMNS} FROM api_keys WHERE {VISIBLE} "  # noqa: S608
    "AND :named IN (name, prefix, previous_prefix, id::text) ORDER BY revoked_at IS NOT NULL, id DESC LIMIT 11"
)
ROTATE = text(
    "UPDATE api_keys SET previous_hash = hash, previous_prefix = prefix, "  # noqa: S608
    "previous_used_at = last_used_at, previous_until = LEAST(now() + CAST(:overlap AS interval), expires_at), "
    "hash = :hash, prefix = :prefix, last_used_at = NULL, rotated_at = now(), rotated_by = :who, "
    "expires_at = COALESCE(now() + CAST(:lifetime AS interval), expires_at) "
    f"WHERE id = :id AND revoked_at IS NULL RETURNING {COLUMNS}"
)
REVOKE = text(
    "UPDATE api_keys SET revoked_at = now(), revoked_by = :who, previous_hash = NULL, "  # noqa: S608
    "previous_prefix = NULL, previous_until = NULL "
    f"WHERE id = :id AND revoked_at IS NULL RETURNING {COLUMNS}"
)
MISSING = text(
    """
    SELECT named FROM unnest(:names) WITH ORDINALITY AS n (named, position)
        WHERE NOT EXISTS (
            SELECT FROM api_keys k WHERE n.named IN (k.name, k.id::text) AND k.revoked_at IS NULL
                AND COALESCE(k.expires_at > now(), true) AND k.role = ANY (:roles)
                AND COALESCE(k.namespace = :namespace, true))
        ORDER BY position
    """
).bindparams(bindparam("names", type_=ARRAY(TEXT)), bindparam("roles", type_=ARRAY(TEXT)))
# One statement finds a key and notes its use, at most once a minute.
FIND = text(
    """
    WITH found AS (
        SELECT k.*, k.hash = :digest AS current,
               CASE WHEN k.hash = :digest THEN k.expires_at ELSE LEAST(k.previous_until, k.expires_at) END AS ends
            FROM api_keys k WHERE k.hash = :digest OR k.previous_hash = :digest
    ), used AS (
        UPDATE api_keys k SET last_used_at = CASE WHEN f.current THEN now() ELSE k.last_used_at END,
                previous_used_at = CASE WHEN f.current THEN k.previous_used_at ELSE now() END
            FROM found f
            WHERE k.id = f.id AND f.revoked_at IS NULL AND COALESCE(f.ends > now(), true)
              AND COALESCE(CASE WHEN f.current THEN f.last_used_at ELSE f.previous_used_at END
                           < now() - interval '1 minute', true)
    )
    SELECT id, name, CASE WHEN current THEN prefix ELSE previous_prefix END AS prefix, role, payloads, namespace,
           agents, capabilities, tenant, requests_per_minute, current, ends, revoked_at,
           COALESCE(ends <= now(), false) AS over,
           EXTRACT(epoch FROM ends - now())::float AS seconds_left
        FROM found
    """
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key to create.

    Attributes:
        payloads: whether it may see payloads.
        requests_per_minute: its quota in each orchestrator; None: there is none.
        lifetime: the time until it expires; None: it does not.
    """

    name: str
    role: Role
    payloads: bool
    scope: Scope
    requests_per_minute: int | None
    lifetime: timedelta | None


@dataclass(frozen=True, slots=True)
class Found:
    """The key that a digest belongs to, or the reason why it is not accepted.

    Attributes:
        refused: the key that is not accepted any more, for the record.
        refusal: why it is not accepted; None if the digest is unknown.
        seconds_left: until it expires.
    """

    key: Key | None = None
    refusal: str | None = None
    refused: Key | None = None
    seconds_left: float | None = None


def create(connection: Connection, new: NewKey, actor: Actor) -> tuple[dict[str, Any], str]:
    """Store a key; return its row and its text, which cannot be read again.

    Raises:
        Conflict: there is a key of that name.
        Forbidden: the actor has less than the new key would have.
    """
    granted = permissions_of(new.role, payloads=new.payloads)
    actor.require_all(granted, new.scope)
    _check_quota(actor, new.requests_per_minute)
    key = key_text.generate()
    scope = new.scope
    values = {
        "name": new.name,
        "prefix": key[: key_text.SHOWN],
        "hash": key_text.digest(key),
        "role": str(new.role),
        "payloads": new.payloads,
        "namespace": scope.namespace,
        "agents": list(scope.agents),
        "capabilities": list(scope.capabilities),
        "tenant": scope.tenant,
        "requests_per_minute": new.requests_per_minute,
        "created_by": str(actor),
        "lifetime": new.lifetime,
    }
    row = connection.execute(CREATE, values).mappings().one_or_none()
    if row is None:
        raise Conflict(
            f"There is a key named {new.name!r} already. Choose another name, or `minion keys rotate {new.name}`."
        )
    return dict(row), key


def list_keys(
    connection: Connection, scope: Scope, *, revoked: bool, limit: int, after: UUID | None
) -> list[dict[str, Any]]:
    """Return up to `limit` keys and one more that the scope shows, the oldest first, without their texts.

    Args:
        revoked: include the revoked ones.
    """
    values = {"namespace": scope.namespace, "all": revoked, "after": after, "most": limit + 1}
    return [dict(row) for row in connection.execute(LIST, values).mappings()]


def get(connection: Connection, scope: Scope, named: str) -> dict[str, Any]:
    """Return the key of that name, prefix or id. A key that was not revoked comes before revoked ones of its name.

    The whole text of a key is accepted in place of its prefix, so that a leaked key can be revoked by its text.

    Raises:
        NotFound: the scope shows no such key.
        AmbiguousId: several namespaces have one of that name.
    """
    if named.startswith(key_text.MARK):
        named = named[: key_text.SHOWN]
    found = connection.execute(NAMED, {"namespace": scope.namespace, "named": storable(named)}).mappings().all()
    if not found:
        raise NotFound(f"There is no key {named[:100]!r}. `minion keys list --all` lists them.")
    active = [row for row in found if row["revoked_at"] is None]
    if len(active) > 1:
        listed = ", ".join(f"{row['id']} (namespace {row['namespace']})" for row in active)
        raise AmbiguousId(
            f"More than one key is named {named!r}: {listed}. Give the id of one.",
            candidates=[str(row["id"]) for row in active],
        )
    return dict(found[0])


def rotate(
    connection: Connection, named: str, actor: Actor, *, overlap: timedelta, lifetime: timedelta | None
) -> tuple[dict[str, Any], str]:
    """Give a key a new text; the previous one stays valid for `overlap`. A second rotation ends that.

    Args:
        lifetime: the new time until it expires; None: as before.

    Raises:
        NotFound, AmbiguousId: as for `get`.
        Conflict: it was revoked, or has expired and gets no new lifetime.
        Forbidden: the actor has less than the key.
    """
    row = get(connection, actor.key.scope, named)
    actor.require_all(permissions_of(Role(row["role"]), payloads=row["payloads"]), _scope_of(row))
    _check_quota(actor, row["requests_per_minute"])
    if row["status"] == "expired" and lifetime is None:
        raise Conflict(f"The key {row['name']!r} expired at {utc(row['expires_at'])}. Give it a new `expires_in`.")
    key = key_text.generate()
    values = {
        "id": row["id"],
        "hash": key_text.digest(key),
        "prefix": key[: key_text.SHOWN],
        "overlap": overlap,
        "lifetime": lifetime,
        "who": str(actor),
    }
    rotated = connection.execute(ROTATE, values).mappings().one_or_none()
    if rotated is None:
        raise Conflict(f"The key {row['name']!r} was revoked. Create another one: `minion keys create`.")
    return dict(rotated), key


def revoke(connection: Connection, named: str, actor: Actor) -> dict[str, Any]:
    """End a key and the one before its rotation, at once. May be repeated.

    Raises:
        NotFound, AmbiguousId: as for `get`.
    """
    row = get(connection, actor.key.scope, named)
    revoked = connection.execute(REVOKE, {"id": row["id"], "who": str(actor)}).mappings().one_or_none()
    return dict(revoked) if revoked else get(connection, actor.key.scope, str(row["id"]))


def missing_deciders(connection: Connection, names: Sequence[str], namespace: str) -> list[str]:
    """Return the keys of an approval policy that do not exist in a namespace, or may not decide.

    Users who log in without a key are unknown until then, and left out.
    """
    asked = [name for name in names if name != BOOTSTRAP and not name.startswith(USER)]
    if not asked:
        return []
    roles = [str(role) for role in roles_with(Permission.TASKS_DECIDE)]
    return list(connection.scalars(MISSING, {"names": asked, "roles": roles, "namespace": namespace}))


def find(connection: Connection, digest: bytes) -> Found:
    """Return the key with this digest, and note that it was used."""
    row = connection.execute(FIND, {"digest": digest}).mappings().one_or_none()
    if row is None:
        return Found()
    if row["revoked_at"] is not None:
        revoked = f"The API key {row['name']!r} was revoked at {utc(row['revoked_at'])}."
        return Found(refusal=revoked, refused=_key(row))
    if row["over"]:
        how = "expired" if row["current"] else "was replaced by a rotation, and its overlap ended"
        return Found(refusal=f"The API key {row['name']!r} {how} at {utc(row['ends'])}.", refused=_key(row))
    return Found(key=_key(row), seconds_left=row["seconds_left"])


def _key(row: RowMapping) -> Key:
    role = Role(row["role"])
    record = f"{row['name']} {row['prefix']}"
    return Key(
        id=row["id"],
        name=row["name"],
        record=record,
        submitter=record,
        role=role,
        permissions=permissions_of(role, payloads=row["payloads"]),
        scope=_scope_of(row),
        requests_per_minute=row["requests_per_minute"],
        prefix=row["prefix"],
    )


def _check_quota(actor: Actor, requests_per_minute: int | None) -> None:
    own = actor.key.requests_per_minute
    if own is not None and (requests_per_minute is None or requests_per_minute > own):
        raise Forbidden(
            f"The key {actor.key.name!r} may send {own} requests a minute, and must not create or rotate a key that "
            f"may send more. Give it a quota of {own} or less."
        )


def _scope_of(row: RowMapping | dict[str, Any]) -> Scope:
    return Scope(
        namespace=row["namespace"],
        agents=tuple(row["agents"]),
        capabilities=tuple(row["capabilities"]),
        tenant=row["tenant"],
    )


def utc(moment: datetime) -> str:
    """Return a time from the database, whose sessions use UTC, for a message."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
