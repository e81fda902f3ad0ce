"""Retention of the audit log: old rows are deleted from its beginning, and a signed checkpoint replaces them.

Rows are verified before they are deleted, so that retention destroys no evidence: it stops at the first fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import structlog
from sqlalchemy import Connection, Engine, text

from shared.access.actors import orchestrator
from shared.audit import chain
from shared.audit import log as audit
from shared.audit.signing import BEGINNING, Link, Signer
from shared.settings import Settings

log = structlog.get_logger(__name__)

BATCH = 1000
# Not at each pass: what it did is an act, with a row.
AT_ONCE = timedelta(days=1)
OLDEST = text("SELECT at FROM audit_log WHERE position IS NOT NULL ORDER BY position LIMIT 1")
NOW = text("SELECT now()")


def prune_audit(engine: Engine, settings: Settings) -> int:
    """Delete rows that are older than `MINION_RETENTION_AUDIT`, at most once a day; return their number.

    Without a key nothing is deleted, because the checkpoint must be signed.
    """
    signer = Signer.find(settings)
    if signer is None or not settings.retention_audit:
        return 0
    with engine.connect() as connection:
        before: datetime = connection.execute(NOW).scalar_one() - timedelta(days=settings.retention_audit)
        oldest = connection.scalar(OLDEST)
    if oldest is None or oldest >= before - AT_ONCE:
        return 0
    pruned = sum(_batches(engine, signer, before))
    if pruned:
        log.info("audit_log_pruned", rows=pruned)
    return pruned


def _batches(engine: Engine, signer: Signer, before: datetime) -> Iterator[int]:
    pruned = BATCH
    while pruned == BATCH:
        with engine.begin() as connection:
            pruned = _prune(connection, signer, before) if chain.lock(connection) else 0
        yield pruned


def _prune(connection: Connection, signer: Signer, before: datetime) -> int:
    start, signature = chain.ends(connection).get("start", (BEGINNING, b""))
    if signature and not signer.is_end("start", start, signature):
        return _refuse(start.position)
    through = start
    for row in chain.sealed(connection, after=start.position):
        if (row["at"] and row["at"] >= before) or through.position - start.position == BATCH:
            break
        if row["position"] != through.position + 1 or not signer.is_link(through, row) or not signer.is_row(row):
            return _refuse(row["position"])
        through = Link(row["position"], bytes(row["hash"]))
    if through == start:
        return 0
    pruned = chain.prune(connection, signer, through)
    facts = {"rows": pruned, "through": through.position, "older_than": before.isoformat(timespec="seconds")}
    audit.record(connection, orchestrator(), "audit.prune", namespace=None, after=facts)
    return pruned


def _refuse(position: int) -> int:
    log.error("audit_log_not_pruned", position=position, todo="run `minion audit verify`")
    return 0
