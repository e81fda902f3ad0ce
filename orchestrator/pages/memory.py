"""The stores of the memory tool with their files and changes; deleting them."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response

from orchestrator.api import memories as api
from orchestrator.api.actors import Actor
from orchestrator.api.auth import Caller
from orchestrator.api.memories import FileQuery, ListedStore, MemoryText, OpenStore, PathQuery, StoreQuery
from orchestrator.api.parameters import Database, in_namespace
from orchestrator.pages.access import Form, Reading
from orchestrator.pages.forms import DoneQuery, NamespaceDoneQuery, as_query, done, show
from orchestrator.pages.rendering import Page, raw
from shared.errors import NotFound

DONE = {
    "delete": "Deleted, with all versions of its files.",
    "delete-file": "Deleted. Its earlier versions stay until retention deletes them.",
}

router = APIRouter(route_class=Page, include_in_schema=False)


class StoresQuery(NamespaceDoneQuery):
    """The page, and the act that was just done."""

    cursor: UUID | None = None


@router.get("/memory")
def list_stores(
    query: Annotated[StoresQuery, Depends(in_namespace(StoresQuery))], request: Request, database: Reading, key: Caller
) -> Response:
    """The stores of a namespace, the oldest first."""
    page = api.list_stores(StoreQuery(namespace=query.namespace, cursor=query.cursor), database, key)
    return show(
        request,
        "memory.html",
        "Memory",
        stores=[ListedStore.model_validate(row).model_dump() for row in page.items],
        namespace=query.namespace,
        done=DONE.get(query.done),
        next=page.next and {"namespace": query.namespace, "cursor": page.next},
    )


@router.get("/memory/{store_id}")
def show_store(
    store_id: UUID, query: Annotated[DoneQuery, Query()], request: Request, database: Reading, key: Caller
) -> Response:
    """One store: its files and its last changes."""
    store = OpenStore.model_validate(api.get_store(store_id, database, key)).model_dump()
    return show(request, "memory_store.html", "Memory", store=store, done=DONE.get(query.done))


@router.get("/memory/{store_id}/raw")
def show_file(store_id: UUID, query: Annotated[FileQuery, Query()], database: Reading, key: Caller) -> Response:
    """The text of a file, as it is or as a change left it."""
    content = MemoryText.model_validate(api.get_file(store_id, query, database, key)).model_dump()["content"]
    if content is None:
        raise NotFound("This change deleted or moved the file.")
    return raw(content)


@router.post("/memory/{store_id}/delete")
def delete_store(store_id: UUID, form: Form, database: Database, reading: Reading, actor: Actor) -> Response:
    """Deletes a store."""
    namespace = api.get_store(store_id, reading, actor.key)["namespace"]
    api.delete_store(store_id, database, actor)
    return done("/memory", "delete", namespace=namespace)


@router.post("/memory/{store_id}/delete-file")
def delete_file(store_id: UUID, form: Form, database: Database, actor: Actor) -> Response:
    """Deletes a file of a store."""
    api.delete_file(store_id, as_query(PathQuery, {"path": form.get("path", "")}), database, actor)
    return done(f"/memory/{store_id}", "delete-file")
