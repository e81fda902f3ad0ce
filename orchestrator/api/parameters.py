"""Parts shared by requests: the database, pages, and text that PostgreSQL can hold."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy import Engine

from orchestrator.api.auth import Caller
from shared.tasks.queries import MAX_PAGE

Item = TypeVar("Item")

# PostgreSQL cannot hold U+0000, not even in a comparison.
Text = Annotated[str, StringConstraints(max_length=255, pattern=r"^[^\x00]*$")]


async def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


async def _statements(request: Request) -> Engine:
    engine: Engine = request.app.state.statements
    return engine


Database = Annotated[Engine, Depends(_engine)]
Statements = Annotated[Engine, Depends(_statements)]
"""The database for requests that only read, or write by one statement: see `shared.database.connections.autocommit`."""


class StrictQuery(BaseModel):
    """Query parameters: an unknown one is refused, because a misspelt filter would show everything."""

    model_config = ConfigDict(extra="forbid")


class PageQuery(StrictQuery):
    """Position and length of a page."""

    limit: int = Field(50, ge=1, le=MAX_PAGE, description="The maximum number of items.")


class NumberedPageQuery(PageQuery):
    """A page of items numbered from 1."""

    cursor: int = Field(0, ge=0, le=2**31 - 1, description="The `next` of the previous page.")


class NamedPageQuery(PageQuery):
    """A page of items sorted by name."""

    namespace: Text = "default"
    cursor: Text = Field("", description="The `next` of the previous page.")


class NamespaceQuery(StrictQuery):
    """The namespace."""

    namespace: Text = "default"


InNamespace = TypeVar("InNamespace", bound=StrictQuery)


def in_namespace(model: type[InNamespace]) -> Callable[..., Coroutine[Any, Any, InNamespace]]:
    """Return a dependency that reads query parameters of that model. A key that is bound to a namespace means that one.

    It raises Forbidden if the request names another.
    """

    async def read(query: InNamespace, key: Caller) -> InNamespace:
        if key.scope.namespace is None:
            return query
        asked = query.namespace if "namespace" in query.model_fields_set else None  # type: ignore[attr-defined]
        return query.model_copy(update={"namespace": key.scope.namespace_of(asked)})

    read.__annotations__["query"] = Annotated[model, Query()]
    return read


Namespace = Annotated[NamespaceQuery, Depends(in_namespace(NamespaceQuery))]
NamedPage = Annotated[NamedPageQuery, Depends(in_namespace(NamedPageQuery))]
NumberedPage = Annotated[NumberedPageQuery, Query()]


class ItemPage(BaseModel, Generic[Item]):
    """A page of a list; `next` is the `cursor` of the next page, null on the last."""

    items: list[Item]
    next: str | None
