"""Files: stored once, by a digest of their content, and referred to by tasks and conversations.

A key that reaches less than a namespace shares its files only with keys of the same bounds (`owner`): to others, they
do not exist. It also reads the files of the tasks that it reaches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from shared.access.scope import Scope
from shared.contracts import media
from shared.contracts.media import Media
from shared.errors import Conflict, InvalidInput, NotFound, TooLarge
from shared.settings import get_settings
from shared.tasks.queries import Page, page_of

COLUMNS = "id, namespace, name, media_type, bytes, sha256, width, height, pages, uploaded_by, uploaded_at"
PREFIX = "file_"
LONGEST_NAME = 255

STORE = text(
    "INSERT INTO files (namespace, id, name, media_type, bytes, sha256, width, height, pages, owner, uploaded_by, "
    "data) VALUES (:namespace, :id, :name, :media_type, :bytes, :sha256, :width, :height, :pages, :owner, "
    ":uploaded_by, :data) "
    "ON CONFLICT (namespace, id) DO NOTHING RETURNING id"
)
# The name of the first upload stays: tasks show it.
TOUCH = text("UPDATE files SET uploaded_at = now() WHERE namespace = :namespace AND id = :id RETURNING id")
USED = text("SELECT COALESCE(sum(bytes), 0) FROM files WHERE namespace = :namespace")
REFERRED = (
    "EXISTS (SELECT FROM task_files r JOIN tasks t ON t.id = r.task_id WHERE r.namespace = f.namespace "
    "AND r.file_id = f.id AND (CAST(:agents AS text[]) IS NULL OR t.agent_name = ANY (:agents)) "
    "AND (CAST(:capabilities AS text[]) IS NULL OR t.capability = ANY (:capabilities)) "
    "AND (CAST(:tenant AS text) IS NULL OR t.key = :tenant) "
    "AND (CAST(:tenants AS text) IS NULL OR starts_with(t.key, :tenants)))"
)
VISIBLE = f"(CAST(:owner AS text) IS NULL OR f.owner = :owner OR {REFERRED})"
GET = text(f"SELECT {COLUMNS} FROM files f WHERE namespace = :namespace AND id = :id AND {VISIBLE}")  # noqa: S608
KNOWN = text(
    f"SELECT {COLUMNS} FROM files f WHERE namespace = :namespace AND id = ANY (:ids) AND {VISIBLE}"  # noqa: S608
)
LIST = text(
    f"SELECT {COLUMNS}, number FROM files f WHERE namespace = :namespace "  # noqa: S608
    "AND (CAST(:owner AS text) IS NULL OR f.owner = :owner) "
    "AND (:before = 0 OR number < :before) ORDER BY number DESC LIMIT :most"
)
DATA = text("SELECT data FROM files WHERE namespace = :namespace AND id = :id")
LOCK = text("SELECT id FROM files WHERE namespace = :namespace AND id = :id FOR UPDATE")
# A schedule's request is few rows' JSON.
UNUSED = (
    "NOT EXISTS (SELECT FROM task_files r WHERE r.namespace = f.namespace AND r.file_id = f.id) "
    "AND NOT EXISTS (SELECT FROM conversation_files r WHERE r.namespace = f.namespace AND r.file_id = f.id) "
    "AND NOT EXISTS (SELECT FROM schedules s WHERE s.namespace = f.namespace AND strpos(s.request::text, f.id) > 0)"
)
DELETE = text(f"DELETE FROM files f WHERE namespace = :namespace AND id = :id AND {UNUSED} RETURNING id")  # noqa: S608
HELD = text(
    "SELECT DISTINCT r.file_id FROM task_files r JOIN tasks t ON t.id = r.task_id "
    "WHERE t.root_id = :root AND r.namespace = :namespace AND r.file_id = ANY (:ids)"
)
OF_TASK = text(
    f"SELECT {COLUMNS} FROM files f WHERE (namespace, id) IN "  # noqa: S608
    "(SELECT r.namespace, r.file_id FROM task_files r WHERE r.task_id = :task) ORDER BY number LIMIT 50"
)
HOLD = text(
    "INSERT INTO task_files (task_id, namespace, file_id) VALUES (:task, :namespace, :id) ON CONFLICT DO NOTHING"
)


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to store, whose content was checked."""

    data: bytes
    media: Media
    name: str | None = None

    @classmethod
    def read(cls, data: bytes, media_type: str | None, name: str | None) -> NewFile:
        """Check a file.

        Raises:
            InvalidInput: its type is not accepted, or its content is of another type.
            TooLarge: it exceeds a limit of the API, or MINION_MAX_FILE_BYTES.
        """
        where = "The file" if name is None else f"The file {name[:100]!r}"
        limit = get_settings().max_file_bytes
        if len(data) > limit:
            raise TooLarge(
                f"{where} has {len(data):,} bytes, and {limit:,} are accepted (MINION_MAX_FILE_BYTES). A model call "
                "takes 32 MB in all.",
                limit=limit,
            )
        if name is not None and not (0 < len(name) <= LONGEST_NAME and name.isprintable()):
            raise InvalidInput(f"Invalid name of a file: it must have 1 to {LONGEST_NAME} printable characters.")
        return cls(data, media.inspect(data, media_type, where=where), name)


def owner_of(scope: Scope) -> str | None:
    """Return the owner of the files that a key uploads; None if it reaches its whole namespace."""
    return repr((scope.tenant, sorted(scope.agents), sorted(scope.capabilities))) if scope.is_partial else None


def id_of(data: bytes, owner: str | None = None) -> str:
    """Return the id of a file: our ids have 64 hexadecimal digits, those of Anthropic's Files API never do."""
    digest = hashlib.sha256(data) if owner is None else hashlib.sha256(owner.encode() + b"\x00" + data)
    return PREFIX + digest.hexdigest()


def store(
    connection: Connection, namespace: str, new: NewFile, *, uploaded_by: str, owner: str | None = None
) -> tuple[str, bool]:
    """Store a file, and return its id and whether it is new. May be repeated.

    Raises:
        TooLarge: the namespace has no room for it.
    """
    place = {"namespace": namespace, "id": id_of(new.data, owner)}
    if connection.scalar(TOUCH, place):
        return place["id"], False
    limit = get_settings().files_bytes
    if limit and (connection.scalar(USED, place) or 0) + len(new.data) > limit:
        raise TooLarge(
            f"The files of the namespace {namespace!r} would have more than {limit:,} bytes (MINION_FILES_BYTES). "
            "Delete some: `minion files list`.",
            limit=limit,
        )
    facts = new.media
    values = {
        **place,
        "name": new.name,
        "media_type": facts.media_type,
        "bytes": facts.size,
        "sha256": hashlib.sha256(new.data).hexdigest(),
        "width": facts.width,
        "height": facts.height,
        "pages": facts.pages,
        "owner": owner,
        "uploaded_by": uploaded_by,
        "data": new.data,
    }
    return place["id"], connection.scalar(STORE, values) is not None


def hold(connection: Connection, task: Any, namespace: str, ids: Iterable[str]) -> None:
    """Keep files as long as a task is kept."""
    for id in sorted(ids):
        connection.execute(HOLD, {"task": task, "namespace": namespace, "id": id})


def held(connection: Connection, root: Any, namespace: str, ids: Sequence[str]) -> set[str]:
    """Return those of the files that the tasks of a tree refer to."""
    return set(connection.scalars(HELD, {"root": root, "namespace": namespace, "ids": list(ids)})) if ids else set()


def get(connection: Connection, namespace: str, id: str, scope: Scope) -> dict[str, Any]:
    """Return the facts of a file.

    Raises:
        NotFound: there is no such file, or a key of this scope cannot know of it.
    """
    found = connection.execute(GET, {"namespace": namespace, "id": id, **_bounds(scope)}).mappings().one_or_none()
    if found is None:
        raise NotFound(f"There is no file {id[:100]!r}. `minion files list` lists them.")
    return dict(found)


def list_files(connection: Connection, namespace: str, scope: Scope, *, before: int, limit: int) -> Page:
    """Return a page of files, the newest first."""
    values = {"namespace": namespace, "before": before, "most": limit + 1, "owner": owner_of(scope)}
    return page_of(connection.execute(LIST, values).mappings().all(), limit, "number")


def data_of(connection: Connection, namespace: str, id: str) -> bytes | None:
    """Return the content of a file; None if there is none."""
    found = connection.scalar(DATA, {"namespace": namespace, "id": id})
    return None if found is None else bytes(found)


def of_task(connection: Connection, task: Any) -> list[dict[str, Any]]:
    """Return the facts of the files that a task refers to, the first uploaded one first."""
    return [dict(row) for row in connection.execute(OF_TASK, {"task": task}).mappings()]


def facts_of(connection: Connection, namespace: str, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the facts of those of the files that exist, by id."""
    values = {"namespace": namespace, "ids": list(ids), **_bounds(Scope())}
    return {row["id"]: dict(row) for row in connection.execute(KNOWN, values).mappings()}


def media_of(
    connection: Connection, namespace: str, ids: Sequence[str], scope: Scope | None = None
) -> dict[str, Media]:
    """Return the facts of those of the files that exist, for a key of this scope."""
    if not ids:
        return {}
    rows = connection.execute(KNOWN, {"namespace": namespace, "ids": list(ids), **_bounds(scope or Scope())})
    return {row.id: Media(row.media_type, row.bytes, row.width, row.height, row.pages) for row in rows}


def delete(connection: Connection, namespace: str, id: str) -> None:
    """Delete a file.

    Raises:
        Conflict: a task, a conversation or a schedule refers to it.
    """
    place = {"namespace": namespace, "id": id}
    # Locked first, so that the references are read after the transactions that may add some.
    connection.execute(LOCK, place)
    if connection.scalar(DELETE, place) is None:
        raise Conflict(
            f"The file {id!r} is in use: a task, a conversation or a schedule refers to it. It can be deleted when "
            "retention or an erasure has deleted them."
        )


def _bounds(scope: Scope) -> dict[str, Any]:
    conditions = scope.conditions
    return {
        "owner": owner_of(scope),
        "agents": list(scope.agents) or None,
        "capabilities": list(scope.capabilities) or None,
        "tenant": conditions.get("tenant"),
        "tenants": conditions.get("tenant_prefix"),
    }
