"""Write and read the audit log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from shared.access.actors import Actor
from shared.audit.signing import Signer
from shared.database.connections import reason
from shared.errors import Unavailable
from shared.settings import get_settings
from shared.storable import storable

Facts = Mapping[str, Any]
MOST_BYTES = 64 << 10
LONGEST_TEXT = 500

INSERT = text(
    "INSERT INTO audit_log (nonce, act, actor, key_prefix, claimed, address, request_id, namespace, target, before, "
    "after, signature) VALUES (:nonce, :act, :actor, :key_prefix, :claimed, :address, :request_id, :namespace, "
    ":target, CAST(:before AS json), CAST(:after AS json), :signature)"
)
COLUMNS = (
    "id, at, act, actor, key_prefix, claimed, address, request_id, namespace, target, before, after, position, "
    "encode(hash, 'hex') AS hash"
)
LIST = text(
    f"SELECT {COLUMNS} FROM audit_log WHERE (CAST(:before AS bigint) IS NULL OR id < :before) "  # noqa: S608
    "AND (CAST(:after AS bigint) IS NULL OR id > :after) "
    "AND (CAST(:namespace AS text) IS NULL OR namespace = :namespace) "
    "AND (CAST(:act AS text) IS NULL OR act = :act OR starts_with(act, :act || '.')) "
    "AND (CAST(:actor AS text) IS NULL OR :actor IN (actor, key_prefix)) "
    "AND (CAST(:target AS text) IS NULL OR target = :target) "
    "AND (CAST(:since AS timestamptz) IS NULL OR at >= :since) "
    "AND (CAST(:until AS timestamptz) IS NULL OR at < :until) ORDER BY id DESC LIMIT :most"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Filter for rows of the log. A row must match all given fields.

    Attributes:
        act: an act such as `task.cancel`, or the first part of several: `task`.
        actor: the name of a key or user, or the prefix of a key.
    """

    namespace: str | None = None
    act: str | None = None
    actor: str | None = None
    target: str | None = None
    since: datetime | None = None
    until: datetime | None = None


def record(
    connection: Connection,
    actor: Actor,
    act: str,
    target: object = None,
    *,
    namespace: str | None,
    before: Facts | None = None,
    after: Facts | None = None,
) -> None:
    """Write an act to the audit log, in the transaction of the act. Call it last, and commit both together.

    Args:
        act: what was done, such as `task.cancel`; `docs/audit.md` lists the acts.
        target: the id or name of the changed object.
        namespace: the namespace of the changed object; None if it belongs to the installation.
        before: the state of the changed fields before, without payloads or secrets.
        after: the same fields after the act, and how it was done.

    Raises:
        Unavailable: the row cannot be written, so the act must not be done either.
    """
    row = {
        "nonce": uuid4(),
        "act": act,
        "actor": storable(actor.key.name),
        "key_prefix": actor.key.prefix,
        "claimed": storable(actor.claimed),
        "address": actor.address,
        "request_id": actor.request_id,
        "namespace": storable(namespace),
        "target": None if target is None else storable(str(target)),
        "before": _as_text(before),
        "after": _as_text(after),
    }
    signer = Signer.find(get_settings())
    try:
        connection.execute(INSERT, {**row, "signature": signer and signer.sign_row(row)})
    except DBAPIError as error:
        raise Unavailable(
            f"The request was refused, and nothing was changed: the audit log cannot be written ({reason(error)}). "
            "Try again; if it lasts, repair the table audit_log."
        ) from error


def list_rows(
    connection: Connection, chosen: AuditFilter, *, limit: int, before: int | None = None, after: int | None = None
) -> list[dict[str, Any]]:
    """Return up to `limit` rows and one more, the newest first.

    Args:
        before: only rows with a lower id.
        after: only rows with a higher id, so that no more are searched.
    """
    values = {name: getattr(chosen, name) for name in AuditFilter.__slots__}
    rows = connection.execute(LIST, {**values, "before": before, "after": after, "most": limit + 1})
    return [dict(row) for row in rows.mappings()]


def changed(before: Facts | None, after: Facts | None) -> dict[str, Facts | None]:
    """Return `before` and `after` for `record`: the fields that differ, or all of an object that is new or gone."""
    if before is None or after is None:
        return {"before": before, "after": after}
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return {"before": {name: before.get(name) for name in names}, "after": {name: after.get(name) for name in names}}


def fingerprint(value: Any) -> str:
    """Return a digest that shows whether a value that must not be in the log was changed, and nothing else.

    It is keyed, so that a short value cannot be guessed.
    """
    written = json.dumps(value, sort_keys=True, default=str).encode()
    signer = Signer.find(get_settings())
    return "(not shown)" if signer is None else signer.digest(written)


def _as_text(facts: Facts | None) -> str | None:
    """Return facts as ASCII text: the signature covers it, and the column keeps it as it is."""
    if facts is None:
        return None
    written = json.dumps(_shortened(storable(dict(facts))), default=str)
    return written if len(written) <= MOST_BYTES else json.dumps({"left_out": f"{len(written)} bytes of facts"})


def _shortened(value: Any) -> Any:
    match value:
        case str():
            return value if len(value) <= LONGEST_TEXT else f"{value[:LONGEST_TEXT]}…"
        case list() | tuple():
            return [_shortened(item) for item in value]
        case dict():
            return {str(name): _shortened(item) for name, item in value.items()}
    return value
