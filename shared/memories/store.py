"""Stores of memory files in PostgreSQL. Each change is a row, and leaves the earlier versions of what it changes.

A store is locked while a command changes it, so tasks that share it change it one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, RowMapping, text

from shared.contracts.server_tools import Memory
from shared.memories import commands

FENCE = text("SELECT minion_fence(:task, :claim)")
OPEN = text(
    "INSERT INTO memory_stores (namespace, tool, per, owner, key) VALUES (:namespace, :tool, :per, :owner, :key) "
    "ON CONFLICT (namespace, tool, per, owner, key) DO NOTHING"
)
OF_OWNER = (
    "SELECT id FROM memory_stores WHERE namespace = :namespace AND tool = :tool AND per = :per AND owner = :owner "
    "AND key IS NOT DISTINCT FROM :key"
)
FIND = text(OF_OWNER)
LOCK = text(f"{OF_OWNER} FOR UPDATE")
# A store that is only read is in use too.
TOUCH = text("UPDATE memory_stores SET used_at = now() WHERE id = :store AND used_at < now() - interval '1 day'")
NEWEST = """
    SELECT DISTINCT ON (v.path) v.path, v.number, v.bytes, v.content IS NULL AS gone, c.at FROM memory_versions v
        JOIN memory_changes c ON c.store_id = v.store_id AND c.number = v.number
        WHERE v.store_id = :store ORDER BY v.path, v.number DESC
"""
FILES = text(f"SELECT path, number, bytes, at FROM ({NEWEST}) n WHERE NOT gone ORDER BY path")  # noqa: S608
READ = text(
    "SELECT number, content FROM memory_versions WHERE store_id = :store AND path = :path "
    "AND (CAST(:number AS int) IS NULL OR number = :number) ORDER BY number DESC LIMIT 1"
)
KNOWN = text("SELECT result FROM memory_changes WHERE store_id = :store AND idempotency_key = :idempotency_key")
CHANGE = text(
    """
    WITH store AS (
        UPDATE memory_stores SET changes = changes + 1, used_at = now() WHERE id = :store RETURNING changes
    )
    INSERT INTO memory_changes
        (store_id, number, command, path, new_path, made_by, task_id, step, idempotency_key, result)
        SELECT :store, changes, :command, :path, :new_path, :made_by, :task, :step, :idempotency_key, :result FROM store
        RETURNING number
    """
)
VERSION = text(
    "INSERT INTO memory_versions (store_id, path, number, content, bytes) "
    "VALUES (:store, :path, :number, :content, :bytes)"
)
COLUMNS = "id, namespace, tool, per, owner, key, changes, created_at, used_at"
STORES = text(
    f"SELECT {COLUMNS}, (SELECT count(*) FROM ({NEWEST.replace(':store', 's.id')}) n WHERE NOT gone) AS files, "  # noqa: S608
    f"(SELECT COALESCE(sum(bytes), 0)::bigint FROM ({NEWEST.replace(':store', 's.id')}) n WHERE NOT gone) AS bytes "
    "FROM memory_stores s WHERE (CAST(:namespace AS text) IS NULL OR namespace = :namespace) "
    "AND (CAST(:tool AS text) IS NULL OR tool = :tool) AND (CAST(:owner AS text) IS NULL OR owner = :owner) "
    "AND (CAST(:after AS uuid) IS NULL OR id > :after) ORDER BY id LIMIT :most"
)
STORE = text(
    f"SELECT {COLUMNS} FROM memory_stores "  # noqa: S608
    "WHERE id = :store AND (CAST(:namespace AS text) IS NULL OR namespace = :namespace)"
)
LOCK_ID = text("SELECT id FROM memory_stores WHERE id = :store FOR UPDATE")
CHANGES = text(
    "SELECT number, command, path, new_path, made_by, task_id, step, at FROM memory_changes WHERE store_id = :store "
    "ORDER BY number DESC LIMIT :most"
)
DELETE = text("DELETE FROM memory_stores WHERE id = :store")
OF_SUBJECT = (
    "FROM memory_stores WHERE namespace = :namespace AND (key = CAST(:tenant AS text) "
    "OR (per = 'conversation' AND owner = CAST(:conversation AS text)))"
)
ERASE = text(f"DELETE {OF_SUBJECT}")
COUNT = text(f"SELECT count(*) {OF_SUBJECT}")
UNUSED = text(
    "DELETE FROM memory_stores WHERE id IN (SELECT id FROM memory_stores WHERE used_at < now() - :age "
    "ORDER BY used_at LIMIT :most FOR UPDATE SKIP LOCKED)"
)
# The newest version of a file stays, whatever its age, unless it says that the file is gone. In order: a file whose
# last version is deleted before the earlier ones would be back.
REPLACED = text(
    """
    DELETE FROM memory_versions WHERE (store_id, path, number) IN (
        SELECT v.store_id, v.path, v.number FROM memory_versions v
            JOIN memory_changes c ON c.store_id = v.store_id AND c.number = v.number
            WHERE c.at < now() - :age
              AND (v.content IS NULL OR EXISTS (
                  SELECT 1 FROM memory_versions n
                      JOIN memory_changes m ON m.store_id = n.store_id AND m.number = n.number
                      WHERE n.store_id = v.store_id AND n.path = v.path AND n.number > v.number
                        AND m.at < now() - :age))
            ORDER BY v.store_id, v.path, v.number LIMIT :most)
    """
)


@dataclass(frozen=True, slots=True)
class Address:
    """The store of a task.

    Attributes:
        owner: the conversation, the tenant key, or the name of the agent.
        key: the tenant key whose erasure deletes the store.
    """

    namespace: str
    tool: str
    per: str
    owner: str
    key: str | None


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a change.

    Attributes:
        made_by: the agent, or the actor.
        idempotency_key: that of the call: the same call changes a store only once.
    """

    made_by: str
    task: UUID | None = None
    step: int | None = None
    idempotency_key: str | None = None


@dataclass(slots=True)
class StoredFiles:
    """The files of a store. A store that is not created yet has none."""

    connection: Connection
    store: UUID | None
    sizes: Mapping[str, int] = field(init=False)

    def __post_init__(self) -> None:
        rows = self.connection.execute(FILES, {"store": self.store}) if self.store else ()
        self.sizes = {row.path: row.bytes for row in rows}

    def read(self, path: str) -> str:
        """See `commands.Files`."""
        return read(self.connection, self.store, path) or ""


def view(connection: Connection, address: Address, fields: Mapping[str, Any]) -> str:
    """Return a file or a directory of a task's store. See `commands.view`."""
    store: UUID | None = connection.scalar(FIND, _values(address))
    if store is not None:
        connection.execute(TOUCH, {"store": store})
    return commands.view(StoredFiles(connection, store), fields)


def change(
    connection: Connection, address: Address, fields: Mapping[str, Any], limits: Memory, origin: Origin, claim: int
) -> str | None:
    """Change a task's store once, in the caller's transaction, and return the result for the model. None: the claim is
    lost.

    Raises:
        InvalidInput: the command cannot be done.
    """
    if not connection.scalar(FENCE, {"task": origin.task, "claim": claim}):
        return None
    connection.execute(OPEN, _values(address))
    store = connection.scalar(LOCK, _values(address))
    known: str | None = connection.scalar(KNOWN, {"store": store, "idempotency_key": origin.idempotency_key})
    if known is not None:
        return known
    made = commands.change(StoredFiles(connection, store), fields, limits)
    _keep(connection, store, fields["command"], made, origin)
    return made.result


def stores(
    connection: Connection,
    namespace: str | None,
    *,
    tool: str | None = None,
    owner: str | None = None,
    after: UUID | None = None,
    limit: int,
) -> list[dict[str, Any]]:
    """Return up to `limit` stores and one more, the oldest first."""
    values = {"namespace": namespace, "tool": tool, "owner": owner, "after": after, "most": limit + 1}
    return [dict(row) for row in connection.execute(STORES, values).mappings()]


def find(connection: Connection, store: UUID, namespace: str | None) -> dict[str, Any] | None:
    """Return a store of a namespace, or of any; None if there is none."""
    row: RowMapping | None = (
        connection.execute(STORE, {"store": store, "namespace": namespace}).mappings().one_or_none()
    )
    return None if row is None else dict(row)


def files(connection: Connection, store: UUID) -> list[dict[str, Any]]:
    """Return the files of a store: path, bytes, the number and time of the last change."""
    return [dict(row) for row in connection.execute(FILES, {"store": store}).mappings()]


def changes(connection: Connection, store: UUID, limit: int = 100) -> list[dict[str, Any]]:
    """Return the last changes of a store, the newest first."""
    return [dict(row) for row in connection.execute(CHANGES, {"store": store, "most": limit}).mappings()]


def read(connection: Connection, store: UUID | None, path: str, number: int | None = None) -> str | None:
    """Return a file as it is now, or as a change left it; None if there is no such version, or it was deleted."""
    found = version(connection, store, path, number)
    return found["content"] if found else None


def version(connection: Connection, store: UUID | None, path: str, number: int | None = None) -> RowMapping | None:
    """Return the number and the content of a version; None if there is none. Without a content, the file is gone."""
    values = {"store": store, "path": path, "number": number}
    return connection.execute(READ, values).mappings().one_or_none()


def delete(connection: Connection, store: UUID) -> None:
    """Delete a store with all its versions."""
    connection.execute(DELETE, {"store": store})


def delete_path(connection: Connection, store: UUID, path: str, made_by: str) -> list[str]:
    """Delete a file, or a directory with all its files; return their paths. Earlier versions stay readable.

    Raises:
        InvalidInput: there is no such path.
    """
    connection.execute(LOCK_ID, {"store": store})
    fields = commands.checked({"command": "delete", "path": path})
    made = commands.change(StoredFiles(connection, store), fields, Memory(per="agent"))
    _keep(connection, store, "delete", made, Origin(made_by))
    return [*made.files]


def erase(
    connection: Connection, namespace: str, *, tenant: str | None, conversation: str | None, dry_run: bool
) -> int:
    """Delete the stores of a tenant key or of a conversation, or only count them; return their number."""
    values = {"namespace": namespace, "tenant": tenant, "conversation": conversation}
    if dry_run:
        return int(connection.scalar(COUNT, values) or 0)
    return connection.execute(ERASE, values).rowcount


def prune(connection: Connection, days: float, limit: int = 500) -> tuple[int, int]:
    """Delete up to `limit` stores that were not used for some days, and versions that were replaced before then.

    Returns:
        the number of each.
    """
    age = timedelta(days=days)
    unused = connection.execute(UNUSED, {"age": age, "most": limit}).rowcount
    return unused, connection.execute(REPLACED, {"age": age, "most": limit}).rowcount


def _keep(connection: Connection, store: UUID | None, command: str, made: commands.Changed, origin: Origin) -> None:
    number = connection.scalar(
        CHANGE,
        {
            "store": store,
            "command": command,
            "path": made.path,
            "new_path": made.new_path,
            "made_by": origin.made_by,
            "task": origin.task,
            "step": origin.step,
            "idempotency_key": origin.idempotency_key,
            "result": made.result,
        },
    )
    versions = [
        {
            "store": store,
            "path": path,
            "number": number,
            "content": content,
            "bytes": len((content or "").encode()),
        }
        for path, content in made.files.items()
    ]
    connection.execute(VERSION, versions)


def _values(address: Address) -> dict[str, Any]:
    return {name: getattr(address, name) for name in Address.__slots__}
