"""Erasure over HTTP: delete the contents of a tenant or a conversation."""

from __future__ import annotations

from typing import Annotated, Self
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, Field, StringConstraints, model_validator

from orchestrator.api import body, problems
from orchestrator.api.actors import Actor
from orchestrator.api.parameters import Database
from orchestrator.observe.counting import catch_up
from orchestrator.retention import erasure
from orchestrator.retention.erasure import Erased, Subject
from shared.contracts.strict_model import Strict

Named = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00]*$")]

router = APIRouter(prefix="/v1/erasures", tags=["erasure"])


class ErasureRequest(Strict):
    """A tenant or a conversation, the tasks of which are deleted."""

    namespace: Annotated[Named, Field(max_length=100)] = "default"
    tenant: Named | None = Field(None, description="The tenant `key` of the tasks.")
    conversation_id: Named | None = None
    dry_run: bool = Field(False, description="Delete nothing, only count.")
    cursor: UUID | None = Field(None, strict=False, description="The `next` of the previous page.")

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.tenant is None) == (self.conversation_id is None):
            raise ValueError("an erasure must name either a `tenant` or a `conversation_id`")
        return self


class Erasure(BaseModel):
    """A page. Ask for the next one with the same request and its `next` as `cursor`."""

    trees: int = Field(description="Root tasks that were deleted, with everything below them.")
    tasks: int = Field(description="All tasks that were deleted.")
    memories: int = Field(description="Stores of memory that were deleted; with the first page.")
    left: list[UUID] = Field(
        description="Root tasks of this page that have not ended. Cancel them, and erase again when they have ended."
    )
    schedules: list[str] = Field(description="Schedules that still submit such tasks. Their requests are left.")
    next: UUID | None


@router.post(
    "",
    name="erase_data",
    response_model=Erasure,
    responses=problems.documented(413, 415),
    openapi_extra=body.documented(ErasureRequest.model_json_schema()),
)
def erase(sent: body.SmallBody, database: Database, actor: Actor) -> Erased:
    """Deletes the ended tasks of a tenant or a conversation: inputs, outputs, steps, messages, events, cached results;
    and its memory. A page at a time. The audit log keeps a row of it, without contents. May be repeated."""
    asked = body.parse_model(ErasureRequest, sent)
    subject = Subject(
        namespace=actor.key.scope.namespace_of(asked.namespace if "namespace" in asked.model_fields_set else None),
        tenant=asked.tenant,
        conversation=asked.conversation_id,
    )
    if not asked.dry_run:
        catch_up(database)
    with database.begin() as connection:
        return erasure.erase(connection, subject, actor, after=asked.cursor, dry_run=asked.dry_run)
