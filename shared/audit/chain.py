"""The chain of the audit log: each row gets a position, and a keyed hash that covers the row and the hash before it.

Rows are written without a place, so that acts do not wait for each other. The sealer chains them seconds later, in the
order in which it sees them: a row that commits late, with a lower id, gets a later position and is never left out.

The head, which is the last place, is signed and stored. Without a valid head the sealer leaves out one position: the
chain continues, and the gap shows that its end may have been cut off.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import structlog
from sqlalchemy import Connection, RowMapping, TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, BIGINT, BYTEA

from shared.audit.signing import BEGINNING, Link, Signer
from shared.database.connections import SCHEMA_LOCK

log = structlog.get_logger(__name__)

SEALER_LOCK = SCHEMA_LOCK + 2
BATCH = 1000
# Times that Python cannot represent are none: no process of the installation wrote them.
COLUMNS = (
    "id, nonce, CASE WHEN at BETWEEN '0002-01-01' AND '9999-01-01' THEN at END AS at, act, actor, key_prefix, "
    "claimed, address, request_id, namespace, target, before::text AS before, after::text AS after, "
    "signature, position, hash"
)
TAKE_LOCK = text("SELECT pg_try_advisory_xact_lock(:key)")
UNSEALED = text(
    f"SELECT {COLUMNS} FROM audit_log WHERE position IS NULL ORDER BY id LIMIT :most"  # noqa: S608
)
SEALED = text(
    f"SELECT {COLUMNS} FROM audit_log WHERE position IS NOT NULL "  # noqa: S608
    "AND (CAST(:after AS bigint) IS NULL OR position > :after) ORDER BY position, id"
)
COPIES = text(
    "SELECT id, position, act FROM (SELECT id, position, act, row_number() OVER (PARTITION BY nonce "
    "ORDER BY position NULLS LAST, id) AS number FROM audit_log) numbered WHERE number > 1 ORDER BY id"
)
LAST = text("SELECT max(position) FROM audit_log")
SEAL = text(
    "UPDATE audit_log a SET position = s.position, hash = s.hash FROM unnest(:ids, :positions, :hashes) "
    "AS s (id, position, hash) WHERE a.id = s.id AND a.position IS NULL"
).bindparams(
    bindparam("ids", type_=ARRAY(BIGINT)),
    bindparam("positions", type_=ARRAY(BIGINT)),
    bindparam("hashes", type_=ARRAY(BYTEA)),
)
ENDS = text("SELECT name, position, hash, signature FROM audit_ends")
SET_HEAD = text(
    "INSERT INTO audit_ends (name, position, hash, signature) VALUES ('head', :position, :hash, :signature) "
    "ON CONFLICT (name) DO UPDATE SET position = EXCLUDED.position, hash = EXCLUDED.hash, "
    "signature = EXCLUDED.signature, at = now()"
)
PRUNE = text("SELECT minion_prune_audit(:position, :hash, :signature)")


def lock(connection: Connection) -> bool:
    """Become the only process that changes the chain, until the transaction ends; return False if another one does."""
    return bool(connection.scalar(TAKE_LOCK, {"key": SEALER_LOCK}))


def seal(connection: Connection, signer: Signer, *, limit: int = 500) -> Link | None:
    """Chain up to `limit` rows. Return the new head; None if there was nothing to do, or another process does it."""
    if not lock(connection):
        return None
    rows = connection.execute(UNSEALED, {"most": limit}).mappings().all()
    if not rows:
        return None
    link, links = head(connection, signer), []
    for row in rows:
        link = signer.chain(link, row)
        links.append(link)
    places = {"positions": [each.position for each in links], "hashes": [each.hash for each in links]}
    connection.execute(SEAL, {"ids": [row["id"] for row in rows], **places})
    set_head(connection, signer, link)
    return link


def head(connection: Connection, signer: Signer) -> Link:
    """Return the place that the next row follows."""
    found = ends(connection)
    start, (stored, signature) = (found.get(name, (BEGINNING, b"")) for name in ("start", "head"))
    last: int = connection.scalar(LAST) or 0
    if signature and last <= stored.position and signer.is_end("head", stored, signature):
        return stored
    furthest = max(start[0].position, stored.position, last)
    if furthest == BEGINNING.position:
        log.warning("audit_chain_begins", todo="this is normal once in an installation's life")
        return BEGINNING
    log.error("audit_head_not_valid", todo="run `minion audit verify`")
    return Link(furthest + 1, BEGINNING.hash)


def set_head(connection: Connection, signer: Signer, link: Link) -> None:
    """Store the last place of the chain."""
    signature = signer.sign_end("head", link)
    connection.execute(SET_HEAD, {"position": link.position, "hash": link.hash, "signature": signature})


def ends(connection: Connection) -> dict[str, tuple[Link, bytes]]:
    """Return the stored ends of the chain by name, each with its signature."""
    return {row.name: (Link(row.position, bytes(row.hash)), bytes(row.signature)) for row in connection.execute(ENDS)}


def sealed(connection: Connection, *, after: int | None = None) -> Iterator[RowMapping]:
    """Yield the rows of the chain in order, from the first one after a position; None: from the lowest position."""
    return _streamed(connection, SEALED, {"after": after})


def unsealed(connection: Connection) -> Iterator[RowMapping]:
    """Yield the rows without a place, the oldest first."""
    return _streamed(connection, UNSEALED, {"most": None})


def copies(connection: Connection) -> Iterator[RowMapping]:
    """Yield rows that are copies of another one, which only works after the unique constraint was dropped."""
    return _streamed(connection, COPIES, {})


def prune(connection: Connection, signer: Signer, through: Link) -> int:
    """Delete the beginning of the chain up to a place, and leave a signed checkpoint. Return the number of rows."""
    values: dict[str, Any] = {"position": through.position, "hash": through.hash}
    return int(connection.scalar(PRUNE, {**values, "signature": signer.sign_end("start", through)}) or 0)


def _streamed(connection: Connection, statement: TextClause, values: dict[str, Any]) -> Iterator[RowMapping]:
    with connection.execute(statement, values, execution_options={"yield_per": BATCH}) as rows:
        yield from rows.mappings()
