"""Files over HTTP: upload, list, read, delete. Tasks refer to them by id."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from orchestrator.api import body, problems
from orchestrator.api.actors import Actor
from orchestrator.api.auth import Caller
from orchestrator.api.base_path import link
from orchestrator.api.parameters import (
    Database,
    ItemPage,
    Namespace,
    NamespaceQuery,
    NumberedPageQuery,
    Statements,
    Text,
    in_namespace,
)
from shared.audit import log
from shared.contracts.media import FILE_TYPES, IMAGE_TYPES, TEXT
from shared.errors import InvalidInput
from shared.settings import Settings
from shared.tasks import files
from shared.tasks.files import NewFile
from shared.tasks.queries import Page

UNKNOWN_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")
"""Content types that say nothing about the content: programs send them by themselves."""
BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}

router = APIRouter(prefix="/v1/files", tags=["files"])


def largest_file(settings: Settings) -> int:
    """Return the size limit of an upload, in bytes."""
    return settings.max_file_bytes


FileBody = Annotated[bytes, Depends(body.reader(largest_file, of_json=False))]


class UploadQuery(NamespaceQuery):
    """The namespace and the name of a file."""

    name: str | None = Field(
        None, min_length=1, max_length=files.LONGEST_NAME, description="Shown to people and models."
    )


class FilePageQuery(NumberedPageQuery):
    """A page of the files of a namespace."""

    namespace: Text = "default"


Upload = Annotated[UploadQuery, Depends(in_namespace(UploadQuery))]
FilePage = Annotated[FilePageQuery, Depends(in_namespace(FilePageQuery))]


class File(BaseModel):
    """A file, without its content."""

    id: str
    namespace: str
    name: str | None
    media_type: str
    bytes: int
    sha256: str
    width: int | None = Field(description="Of an image, in pixels.")
    height: int | None
    pages: int | None = Field(description="Of a PDF; null if they cannot be counted.")
    uploaded_by: str
    uploaded_at: datetime = Field(description="The latest upload of this content.")


@router.post(
    "",
    status_code=201,
    response_model=File,
    responses={200: {"model": File, "description": "Uploaded before"}, **problems.documented(413, 415)},
    openapi_extra={"requestBody": {"required": True, "content": dict.fromkeys(FILE_TYPES, BINARY)}},
)
def upload_file(
    sent: FileBody, query: Upload, request: Request, database: Database, response: Response, actor: Actor
) -> dict[str, Any]:
    """Stores an image, a PDF or a text: the body is its content. The same content is the same file: uploading it again
    returns it (200). Without a Content-Type, the type is recognised."""
    new = NewFile.read(sent, _type_of(request), query.name)
    owner = files.owner_of(actor.key.scope)
    with database.begin() as connection:
        id, created = files.store(connection, query.namespace, new, uploaded_by=actor.key.submitter, owner=owner)
        stored = files.get(connection, query.namespace, id, actor.key.scope)
        facts = {name: stored[name] for name in ("media_type", "bytes", "sha256")} | {"created": created}
        log.record(connection, actor, "file.upload", id, namespace=query.namespace, after=facts)
    response.status_code = 201 if created else 200
    response.headers["Location"] = link(f"/v1/files/{id}")
    return stored


@router.get("", response_model=ItemPage[File])
def list_files(query: FilePage, database: Statements, key: Caller) -> Page:
    """The files of a namespace, the newest first; for a bound key, those that keys with its bounds have uploaded."""
    with database.connect() as connection:
        return files.list_files(connection, query.namespace, key.scope, before=query.cursor, limit=query.limit)


@router.get("/{file_id}", response_model=File, responses=problems.documented(404))
def get_file(file_id: Text, query: Namespace, database: Statements, key: Caller) -> dict[str, Any]:
    """One file, without its content."""
    with database.connect() as connection:
        return files.get(connection, query.namespace, file_id, key.scope)


@router.get(
    "/{file_id}/content",
    name="get_file_content",
    response_class=Response,
    responses={200: {"content": dict.fromkeys(FILE_TYPES, BINARY)}, **problems.documented(404)},
)
def get_content(file_id: Text, query: Namespace, database: Statements, key: Caller) -> Response:
    """The content of a file. Browsers show images, and save all else."""
    with database.connect() as connection:
        facts = files.get(connection, query.namespace, file_id, key.scope)
        data = files.data_of(connection, query.namespace, file_id)
    return Response(data, media_type=facts["media_type"], headers=_headers(facts))


@router.delete("/{file_id}", response_model=File, responses=problems.documented(404, 409))
def delete_file(file_id: Text, query: Namespace, database: Database, actor: Actor) -> dict[str, Any]:
    """Deletes a file that no task, conversation or schedule refers to, and shows what it was."""
    with database.begin() as connection:
        found = files.get(connection, query.namespace, file_id, actor.key.scope)
        files.delete(connection, query.namespace, file_id)
        facts = {name: found[name] for name in ("media_type", "bytes", "sha256")}
        log.record(connection, actor, "file.delete", file_id, namespace=query.namespace, before=facts)
        return found


def _type_of(request: Request) -> str | None:
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared in UNKNOWN_TYPES:
        return None
    if declared.startswith("multipart/"):
        raise InvalidInput(
            "The body is a form: send the content of the file alone, as `curl --data-binary @FILE` does."
        )
    return TEXT if declared.startswith("text/") or declared == "application/json" else declared


def _headers(facts: dict[str, Any]) -> dict[str, str]:
    """Return headers with which no browser runs anything that a file contains."""
    shown = "inline" if facts["media_type"] in IMAGE_TYPES else "attachment"
    name = quote(str(facts["name"] or facts["id"]), safe="")
    return {
        "Content-Disposition": f"{shown}; filename*=UTF-8''{name}",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "private, no-store",
    }
