"""Files that tasks refer to: images, PDFs and texts; deleting one."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from orchestrator.api import files as api
from orchestrator.api.actors import Actor
from orchestrator.api.auth import Caller
from orchestrator.api.files import FilePageQuery
from orchestrator.api.parameters import Database, Namespace, Text, in_namespace
from orchestrator.pages.access import Form, Reading
from orchestrator.pages.forms import NOTHING, DoneQuery, Typed, corrected, done, show
from orchestrator.pages.rendering import Page
from shared.access.actors import Key

DONE = {"delete": "Deleted."}

router = APIRouter(route_class=Page, include_in_schema=False)


class FilesQuery(FilePageQuery, DoneQuery):
    """The page, and the act that was just done."""


@router.get("/files")
def list_files(
    query: Annotated[FilesQuery, Depends(in_namespace(FilesQuery))], request: Request, database: Reading, key: Caller
) -> Response:
    """The files of a namespace, the newest first."""
    return _list(request, database, key, query)


@router.post("/files/{file_id}/delete")
def delete(
    file_id: Text, query: Namespace, form: Form, request: Request, database: Database, reading: Reading, actor: Actor
) -> Response:
    """Deletes a file that nothing refers to."""

    def act() -> Response:
        api.delete_file(file_id, query, database, actor)
        return done("/files", "delete", namespace=query.namespace)

    again = FilesQuery(namespace=query.namespace)
    return corrected("delete", form, act, lambda typed: _list(request, reading, actor.key, again, typed))


def _list(request: Request, database: Reading, key: Key, query: FilesQuery, typed: Typed = NOTHING) -> Response:
    page = api.list_files(query, database, key)
    return show(
        request,
        "files.html",
        "Files",
        typed,
        files=page.items,
        namespace=query.namespace,
        done=DONE.get(query.done),
        next=page.next and {"namespace": query.namespace, "cursor": page.next},
        next_text="Older files",
    )
