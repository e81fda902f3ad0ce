"""Parts shared by requests: the database, pages, and text that PostgreSQL can hold."""

from __future__ import annotations

from typing import Annotated, Generic, TypeVar

from fastapi import Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy import Engine

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


Namespace = Annotated[NamespaceQuery, Query()]
NamedPage = Annotated[NamedPageQuery, Query()]
NumberedPage = Annotated[NumberedPageQuery, Query()]


class ItemPage(BaseModel, Generic[Item]):
    """A page of a list; `next` is the `cursor` of the next page, null on the last."""

    items: list[Item]
    next: str | None
