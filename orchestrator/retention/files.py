"""Files that nothing refers to any more are deleted, some days after their latest upload."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from sqlalchemy import Connection, Engine, text

from shared.access.actors import orchestrator
from shared.audit import log as audit
from shared.settings import Settings
from shared.tasks.files import UNUSED

MOST = 200
# Locked first, so that references that others are adding are read: see `shared.tasks.files.delete`.
LOCK = text(
    f"SELECT namespace, id FROM files f WHERE uploaded_at < now() - CAST(:age AS interval) AND {UNUSED} "  # noqa: S608
    "ORDER BY uploaded_at LIMIT :most FOR UPDATE SKIP LOCKED"
)
DELETE = text(
    "DELETE FROM files f USING unnest(CAST(:namespaces AS text[]), CAST(:ids AS text[])) AS c (namespace, id) "  # noqa: S608
    f"WHERE f.namespace = c.namespace AND f.id = c.id AND {UNUSED} RETURNING f.bytes"
)
OF_TREES = text(
    "SELECT r.namespace, r.file_id AS id FROM task_files r JOIN tasks t ON t.id = r.task_id "
    "WHERE t.root_id = ANY (CAST(:roots AS uuid[])) "
    "UNION SELECT r.namespace, r.file_id FROM conversation_files r JOIN tasks t "
    "ON t.namespace = r.namespace AND t.conversation_id = r.conversation_id "
    "WHERE t.root_id = ANY (CAST(:roots AS uuid[]))"
)
LOCK_NAMED = text(
    "SELECT f.id FROM files f JOIN unnest(CAST(:namespaces AS text[]), CAST(:ids AS text[])) AS c (namespace, id) "
    "USING (namespace, id) ORDER BY f.namespace, f.id FOR UPDATE OF f"
)

Named = list[tuple[str, str]]
"""Namespaces and ids of files."""


def prune_files(engine: Engine, settings: Settings) -> int:
    """Delete unused files that are older than `MINION_RETENTION_FILES`; return their number."""
    if not settings.retention_files:
        return 0
    age, total = timedelta(days=settings.retention_files), 0
    while True:
        with engine.begin() as connection:
            found = [(row.namespace, row.id) for row in connection.execute(LOCK, {"age": age, "most": MOST})]
            sizes = _delete(connection, found)
            if sizes:
                facts = {"files": len(sizes), "bytes": sum(sizes)}
                audit.record(connection, orchestrator(), "file.prune", None, namespace=None, after=facts)
        total += len(sizes)
        if len(found) < MOST or not sizes:
            return total


def files_of(connection: Connection, roots: list[UUID]) -> Named:
    """Return the files that trees refer to, and those of their conversations."""
    return [(row.namespace, row.id) for row in connection.execute(OF_TREES, {"roots": roots})]


def delete_unused(connection: Connection, named: Named) -> None:
    """Delete those of the files that nothing refers to any more."""
    if named:
        connection.execute(LOCK_NAMED, _columns(named))
        _delete(connection, named)


def _delete(connection: Connection, named: Named) -> list[int]:
    return list(connection.scalars(DELETE, _columns(named))) if named else []


def _columns(named: Named) -> dict[str, list[str]]:
    return {"namespaces": [namespace for namespace, _ in named], "ids": [id for _, id in named]}
