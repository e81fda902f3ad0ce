"""Logins of browsers: open, find the one that a cookie presents, list, end.

The cookie holds 256 random bits, and only their digest is stored. A login that was opened with a key has the rights of
that key, and ends when the key, or the text of it that was shown, does. A login with OpenID Connect has the rights that
its row holds. Times are those of PostgreSQL's clock.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, RowMapping, text

from shared.access import keys
from shared.access.actors import Key
from shared.access.keys import Found, utc
from shared.access.roles import Permission, Role, permissions_of
from shared.access.scope import Scope
from shared.errors import NotFound
from shared.storable import storable

FORM = re.compile(r"[A-Za-z0-9_-]{43}")
LONGEST_USER_AGENT = 200
KEPT = timedelta(days=7)
"""How long a login that has expired stays in the list."""
OPEN = text(
    "INSERT INTO login_sessions (hash, kind, user_name, key_id, key_hash, subject, role, payloads, namespace, tenant, "
    "expires_at, idle, address, user_agent) VALUES (:hash, :kind, :user, :key_id, :key_hash, :subject, :role, "
    ":payloads, :namespace, :tenant, now() + CAST(:lifetime AS interval), CAST(:idle AS interval), :address, "
    ":user_agent) RETURNING id"
)
FORGET = text(
    "DELETE FROM login_sessions WHERE id IN (SELECT id FROM login_sessions "
    "WHERE expires_at < now() - CAST(:kept AS interval) LIMIT 1000 FOR UPDATE SKIP LOCKED)"
)
# One statement finds a login and notes its use: at most once a minute, or ten times in the time that it may be idle.
FIND = text(
    """
    WITH found AS (
        SELECT *, last_used_at + idle AS idle_until, LEAST(expires_at, last_used_at + idle) AS ends
            FROM login_sessions WHERE hash IN (:digest, :administrators)
    ), used AS (
        UPDATE login_sessions s SET last_used_at = now() FROM found f
            WHERE s.id = f.id AND :use AND f.ended_at IS NULL AND f.ends > now()
              AND f.last_used_at < now() - LEAST(interval '1 minute', f.idle / 10)
    )
    SELECT *, expires_at <= now() AS expired, idle_until <= now() AS unused,
           EXTRACT(epoch FROM ends - now())::float AS seconds_left
        FROM found
    """
)
# The text of the key that opened the login is the current one, the one before the last rotation, or was replaced.
COLUMNS = (
    "s.id, s.user_name AS user, s.kind, COALESCE(s.role, k.role, 'admin') AS role, "
    "COALESCE(s.namespace, k.namespace) AS namespace, COALESCE(s.tenant, k.tenant) AS tenant, s.created_at, "
    "s.last_used_at, s.expires_at, s.address, s.user_agent, s.ended_at, s.ended_by, "
    "CASE WHEN s.ended_at IS NOT NULL OR k.revoked_at IS NOT NULL THEN 'ended' "
    "WHEN LEAST(s.expires_at, s.last_used_at + s.idle, CASE WHEN k.hash = s.key_hash THEN k.expires_at "
    "WHEN k.previous_hash = s.key_hash THEN LEAST(k.previous_until, k.expires_at) ELSE k.rotated_at END) <= now() "
    "THEN 'expired' ELSE 'active' END AS status"
)
# A bound administrator sees the logins of its namespace only.
VISIBLE = "(CAST(:namespace AS text) IS NULL OR COALESCE(s.namespace, k.namespace) = :namespace)"
LIST = text(
    f"SELECT * FROM (SELECT {COLUMNS} FROM login_sessions s LEFT JOIN api_keys k ON k.id = s.key_id "  # noqa: S608
    f"WHERE {VISIBLE} AND (CAST(:before AS uuid) IS NULL OR s.id < :before)) each "
    "WHERE :all OR status = 'active' ORDER BY id DESC LIMIT :most"
)
END = text(
    "UPDATE login_sessions l SET ended_at = now(), ended_by = :who WHERE ended_at IS NULL AND id IN ("  # noqa: S608
    f"SELECT s.id FROM login_sessions s LEFT JOIN api_keys k ON k.id = s.key_id WHERE {VISIBLE} "
    "AND (s.id = :id OR s.user_name = :user)) RETURNING id"
)
GET = text(
    f"SELECT {COLUMNS} FROM login_sessions s LEFT JOIN api_keys k ON k.id = s.key_id "  # noqa: S608
    f"WHERE {VISIBLE} AND s.id = :id"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Administrator:
    """The administrator's key, with its text."""

    key: Key
    text: bytes = field(repr=False)

    def digest(self, digest: bytes) -> bytes:
        """Return the digest under which this administrator's logins are stored: they end when the key is replaced.

        The key cannot be guessed from it, because the cookie's secret is part of it.
        """
        return hmac.digest(self.text, digest, "sha256")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opener:
    """The proof that opens a login: a key with the digest of its text, or an identity without a key.

    Attributes:
        key: its rights.
        digest: of the key's text; None for the administrator's key, and with OpenID Connect.
    """

    kind: str
    user: str
    key: Key
    digest: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Browser:
    """The browser of a login, for the list of logins.

    Attributes:
        address: None if it is unknown.
    """

    address: str | None
    user_agent: str


@dataclass(frozen=True, slots=True)
class Login(Found):
    """The login that a digest belongs to, or the reason why it is not accepted.

    Attributes:
        renewable: it was in use when it expired, so the identity provider may be asked again at once.
        user: the user's name.
        expires_at: when it ends, however much it is used.
    """

    renewable: bool = False
    user: str | None = None
    expires_at: datetime | None = None


def new_token() -> str:
    """Return the text of a cookie: 256 random bits."""
    return secrets.token_urlsafe(32)


def is_well_formed(token: str) -> bool:
    """Return whether a text has the form of a cookie."""
    return bool(FORM.fullmatch(token))


def digest(token: str) -> bytes:
    """Return the SHA-256 of a cookie, which is stored in its place."""
    return hashlib.sha256(token.encode()).digest()


def csrf_token(token: str) -> str:
    """Return the text that unsafe requests with this cookie must repeat. Another site can read neither."""
    return hmac.new(token.encode(), b"minion csrf", "sha256").hexdigest()


def by_administrator(administrator: Administrator) -> Opener:
    """Return the proof of the administrator's key."""
    return Opener(kind="administrator", user=f"key:{administrator.key.name}", key=administrator.key)


def by_key(key: Key, digest: bytes) -> Opener:
    """Return the proof of an API key."""
    return Opener(kind="key", user=f"key:{key.name}", key=key, digest=digest)


def by_identity(user: str, subject: str, role: Role, *, payloads: bool | None, scope: Scope) -> Opener:
    """Return the proof of an identity that a provider has confirmed.

    Args:
        subject: the provider's own id of the user.
        payloads: whether the user may see payloads; None: as the role.
    """
    return Opener(kind="oidc", user=user, key=_identity(user, subject, role, payloads, scope, prefix=None))


def open_login(
    connection: Connection,
    token: str,
    opener: Opener,
    administrator: Administrator,
    browser: Browser,
    *,
    lifetime: timedelta,
    idle: timedelta,
) -> Key:
    """Store a login for a new cookie, and forget those that expired a week ago; return its rights."""
    connection.execute(FORGET, {"kept": KEPT})
    stored = digest(token)
    own = opener.kind == "oidc"
    values = {
        "hash": administrator.digest(stored) if opener.kind == "administrator" else stored,
        "kind": opener.kind,
        "user": opener.user,
        "key_id": opener.key.id,
        "key_hash": opener.digest,
        "subject": opener.key.subject,
        "role": str(opener.key.role) if own else None,
        "payloads": opener.key.may(Permission.PAYLOADS_READ) if own else None,
        "namespace": opener.key.scope.namespace if own else None,
        "tenant": opener.key.scope.tenant if own else None,
        "lifetime": lifetime,
        "idle": idle,
        "address": browser.address,
        "user_agent": _shortened(browser.user_agent),
    }
    opened: UUID = connection.execute(OPEN, values).scalar_one()
    return replace(opener.key, login=opened, prefix=opener.key.prefix or _prefix(stored))


def find(connection: Connection, digest: bytes, *, administrator: Administrator, use: bool) -> Login:
    """Return the login with this digest.

    Args:
        use: note that it was used, which an open page that only watches does not.
    """
    values = {"digest": digest, "administrators": administrator.digest(digest), "use": use}
    row = connection.execute(FIND, values).mappings().one_or_none()
    if row is None:
        return Login()
    if row["ended_at"] is not None:
        return Login(refusal=f"This login was ended at {utc(row['ended_at'])}.")
    if row["expired"]:
        return Login(
            refusal=f"This login expired at {utc(row['expires_at'])}.",
            renewable=row["kind"] == "oidc" and row["idle_until"] >= row["expires_at"],
        )
    if row["unused"]:
        return Login(refusal=f"This login ended at {utc(row['idle_until'])}, because it was not used any more.")
    found = _opener(connection, row, administrator)
    if found.key is None:
        refusal = f"This login has ended with its key. {found.refusal or 'The key was replaced.'}"
        return Login(refusal=refusal, refused=found.refused)
    left = [row["seconds_left"], *([] if found.seconds_left is None else [found.seconds_left])]
    return Login(
        key=replace(found.key, login=row["id"]),
        seconds_left=min(left),
        user=row["user_name"],
        expires_at=row["expires_at"],
    )


def list_logins(
    connection: Connection, scope: Scope, *, ended: bool, limit: int, before: UUID | None
) -> list[dict[str, Any]]:
    """Return up to `limit` logins and one more that the scope shows, the newest first.

    Args:
        ended: include those that are over.
    """
    values = {"namespace": scope.namespace, "all": ended, "before": before, "most": limit + 1}
    return [dict(row) for row in connection.execute(LIST, values).mappings()]


def end(connection: Connection, scope: Scope, login: UUID, who: str) -> dict[str, Any]:
    """End a login, and return it. May be repeated.

    Raises:
        NotFound: the scope shows no such login.
    """
    values = {"namespace": scope.namespace, "id": login, "user": None, "who": storable(who)}
    connection.execute(END, values)
    found = connection.execute(GET, values).mappings().one_or_none()
    if found is None:
        raise NotFound(f"There is no login {login}. `minion sessions list --all` lists them.")
    return dict(found)


def end_all(connection: Connection, scope: Scope, user: str, who: str) -> list[UUID]:
    """End all logins of a user that the scope shows, and return their ids."""
    values = {"namespace": scope.namespace, "id": None, "user": storable(user), "who": storable(who)}
    return list(connection.scalars(END, values))


def _opener(connection: Connection, row: RowMapping, administrator: Administrator) -> Found:
    """Return the key with the rights of a login, as it is now."""
    if row["kind"] == "administrator":
        return Found(key=administrator.key)
    if row["kind"] == "key":
        return keys.find(connection, row["key_hash"])
    scope = Scope(namespace=row["namespace"], tenant=row["tenant"])
    return Found(
        key=_identity(row["user_name"], row["subject"], Role(row["role"]), row["payloads"], scope, _prefix(row["hash"]))
    )


def _prefix(digest: bytes) -> str:
    return f"session:{digest.hex()[:8]}"


def _identity(user: str, subject: str, role: Role, payloads: bool | None, scope: Scope, prefix: str | None) -> Key:
    return Key(
        id=None,
        name=user,
        record=user,
        submitter=user,
        role=role,
        permissions=permissions_of(role, payloads=payloads),
        scope=scope,
        prefix=prefix,
        subject=subject,
    )


def _shortened(user_agent: str) -> str:
    visible = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in user_agent)
    return visible[:LONGEST_USER_AGENT]
