"""The memory of models, over HTTP: list, read and delete stores of the memory tool."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field, StringConstraints
from sqlalchemy import Connection

from orchestrator.api import problems
from orchestrator.api.actors import Actor
from orchestrator.api.auth import Caller
from orchestrator.api.masking import PayloadText
from orchestrator.api.parameters import Database, ItemPage, PageQuery, Statements, StrictQuery, Text
from shared.access.actors import Key
from shared.audit import log
from shared.errors import NotFound
from shared.memories import paths, store
from shared.tasks.queries import Page

router = APIRouter(prefix="/v1/memory", tags=["memory"])

Path = Annotated[str, StringConstraints(min_length=1, max_length=paths.MAX_LENGTH, pattern=r"^[^\x00]*$")]


class MemoryStore(BaseModel):
    """The files that a model remembers things in, of a conversation, a tenant or an agent."""

    id: UUID
    namespace: str
    tool: str = Field(description="The memory tool. Agents with the same tool share its stores.")
    per: Literal["conversation", "tenant", "agent"]
    owner: str = Field(description="The conversation, the tenant key, or the name of the agent.")
    key: str | None = Field(description="The tenant key whose erasure deletes it.")
    changes: int = Field(description="The number of its changes so far.")
    created_at: datetime
    used_at: datetime = Field(description="When a task changed it, or read it; the latter is written once a day.")


class ListedStore(MemoryStore):
    """A store in a list."""

    files: int
    bytes: int = Field(description="Of the files, without their earlier versions.")


class MemoryFile(BaseModel):
    """A file as it is now."""

    path: PayloadText
    bytes: int
    number: int = Field(description="The change that left it.")
    at: datetime


class MemoryChange(BaseModel):
    """A change of a store."""

    number: int
    command: str = Field(description="create, str_replace, insert, delete or rename.")
    path: PayloadText
    new_path: PayloadText
    made_by: str = Field(description="The agent, or the actor who deleted a file.")
    task_id: UUID | None
    step: int | None
    at: datetime


class OpenStore(MemoryStore):
    """A store with its files and its last changes, the newest first."""

    files: list[MemoryFile]
    history: list[MemoryChange]


class MemoryText(BaseModel):
    """The text of a file; null if this version says that it was deleted or moved."""

    path: str
    content: PayloadText


class DeletedFiles(BaseModel):
    """The paths of deleted files."""

    deleted: list[PayloadText]


class StoreQuery(PageQuery):
    """Filters for stores."""

    namespace: Text | None = Field(None, description="All that the key reaches, if it is left out.")
    tool: Text | None = None
    owner: Text | None = None
    cursor: UUID | None = Field(None, description="The `next` of the previous page.")


class FileQuery(StrictQuery):
    """A file."""

    path: Path
    change: int | None = Field(None, ge=1, le=2**31 - 1, description="As this change left it; by default, as it is.")


class PathQuery(StrictQuery):
    """A file, or a directory."""

    path: Path


@router.get("", name="list_memory_stores", response_model=ItemPage[ListedStore])
def list_stores(query: Annotated[StoreQuery, Query()], database: Statements, key: Caller) -> Page:
    """The stores of memory, the oldest first."""
    with database.connect() as connection:
        rows = store.stores(
            connection,
            _namespace(key, query.namespace),
            tool=query.tool,
            owner=query.owner,
            after=query.cursor,
            limit=query.limit,
        )
    items = rows[: query.limit]
    return Page(items, str(items[-1]["id"]) if len(rows) > query.limit else None)


@router.get("/{store_id}", name="get_memory_store", response_model=OpenStore, responses=problems.documented(404))
def get_store(store_id: UUID, database: Statements, key: Caller) -> dict[str, Any]:
    """A store with its files and its last changes."""
    with database.connect() as connection:
        found = _find(connection, key, store_id)
        return {
            **found,
            "files": store.files(connection, store_id),
            "history": store.changes(connection, store_id),
        }


@router.get("/{store_id}/file", name="get_memory_file", response_model=MemoryText, responses=problems.documented(404))
def get_file(store_id: UUID, query: Annotated[FileQuery, Query()], database: Statements, key: Caller) -> dict[str, Any]:
    """The text of a file, as it is or as a change left it."""
    with database.connect() as connection:
        _find(connection, key, store_id)
        version = store.version(connection, store_id, query.path, query.change)
    if version is None or (version["content"] is None and query.change is None):
        raise NotFound(f"There is no such file in this store. `minion memory show {store_id}` lists its files.")
    return {"path": query.path, "content": version["content"]}


@router.delete(
    "/{store_id}",
    name="delete_memory_store",
    status_code=204,
    response_class=Response,
    responses=problems.documented(404),
)
def delete_store(store_id: UUID, database: Database, actor: Actor) -> None:
    """Deletes a store with all versions of its files. Running tasks continue with an empty one."""
    with database.begin() as connection:
        found = _find(connection, actor.key, store_id)
        store.delete(connection, store_id)
        facts = {name: found[name] for name in ("tool", "per", "owner", "changes")}
        log.record(connection, actor, "memory.delete", store_id, namespace=found["namespace"], before=facts)


@router.delete(
    "/{store_id}/file", name="delete_memory_file", response_model=DeletedFiles, responses=problems.documented(404)
)
def delete_file(
    store_id: UUID, query: Annotated[PathQuery, Query()], database: Database, actor: Actor
) -> dict[str, Any]:
    """Deletes a file, or a directory with its files. Their earlier versions stay until retention deletes them."""
    with database.begin() as connection:
        found = _find(connection, actor.key, store_id)
        deleted = store.delete_path(connection, store_id, query.path, str(actor))
        log.record(
            connection,
            actor,
            "memory.delete_file",
            store_id,
            namespace=found["namespace"],
            after={"files": len(deleted)},
        )
    return {"deleted": deleted}


def _find(connection: Connection, key: Key, store_id: UUID) -> dict[str, Any]:
    found = store.find(connection, store_id, key.scope.namespace)
    if found is None:
        raise NotFound(f"There is no store of memory {store_id}. `minion memory list` lists them.")
    return found


def _namespace(key: Key, asked: str | None) -> str | None:
    return asked if key.scope.namespace is None else key.scope.namespace_of(asked)
