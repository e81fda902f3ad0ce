"""Filters of task lists and counts, as query parameters."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Query
from pydantic import Field, StringConstraints, model_validator
from sqlalchemy import Connection

from orchestrator.api.parameters import PageQuery, StrictQuery, Text, in_namespace
from orchestrator.api.task_ids import TaskRef, task_id_of
from orchestrator.api.task_models import check_private
from shared.access.actors import Key
from shared.access.scope import tenant_name
from shared.contracts.strict_model import Moment
from shared.errors import InvalidInput
from shared.tasks.queries import MAX_OUTPUTS, TaskFilter
from shared.tasks.states import State
from shared.tasks.task_query import COST, LONGEST, parse_query

IDS = ("root_id", "parent_id", "replay_of")

Label = Annotated[str, StringConstraints(pattern=r"^[^:\x00]+:[^\x00]*$", max_length=1000)]
Cost = Annotated[str, StringConstraints(pattern=f"^{COST.pattern}$")]


class TaskQuery(StrictQuery):
    """Filters; a task must match all that are given."""

    query: str | None = Field(
        None,
        max_length=LONGEST,
        description="Filters in one text, like `agent:triage state:failed cost:>0.5 since:1d label:env=prod`.",
    )
    namespace: Text = "default"
    state: list[State] = Field([], description="Only tasks in one of these states.")
    agent: Text | None = None
    capability: Text | None = None
    key: Text | None = Field(None, description="The tenant.")
    label: list[Label] = Field([], description="`name:value`; tasks must have all of them.", examples=[["team:search"]])
    cost: list[Cost] = Field(
        [],
        description="`>0.5` or `<0.5`: only tasks that have cost more or less than this, in dollars, without the tasks "
        "below them. Pages may then be short, or empty: `next` continues the search.",
        examples=[[">0.5"]],
    )
    root_id: TaskRef | None = None
    parent_id: TaskRef | None = None
    replay_of: TaskRef | None = None
    conversation_id: Text | None = None
    error_fingerprint: Text | None = Field(
        None, description="Only tasks that failed with this kind of error; see `/v1/dead-letters`."
    )
    unreplayed: bool = Field(False, description="Only tasks without a replay.")
    created_after: Moment | None = Field(None, description="Inclusive, with a time zone.")
    created_before: Moment | None = Field(None, description="Exclusive, with a time zone.")

    @model_validator(mode="before")
    @classmethod
    def _read_query(cls, given: Any) -> Any:
        """Add the filters that the query names to the others."""
        if not isinstance(given, dict) or not isinstance(given.get("query"), str):
            return given
        named = parse_query(given["query"])
        if twice := [name for name in named if given.get(name)]:
            raise InvalidInput(f"{twice[0]} is given twice: as a parameter, and in `query`. Give it once.")
        return {**given, **named}

    def chosen(self, connection: Connection, reader: Key) -> TaskFilter:
        """Return the filter for `shared.tasks.queries`, with full ids, for what this key reaches.

        Raises:
            Forbidden: it filters by a private label, whose value the key must not see.
        """
        others = {"query", "state", "label", "cost", "unreplayed"}
        plain: dict[str, Any] = self.model_dump(include=set(TaskQuery.model_fields) - others, exclude_none=True)
        ids = {name: task_id_of(connection, plain[name], reader.scope) for name in IDS if name in plain}
        labels = dict(label.split(":", 1) for label in self.label)
        check_private(labels, reader)
        if reader.scope.tenant is not None and self.conversation_id is not None:
            tenant = reader.scope.tenant_of(self.key)
            plain["conversation_id"] = tenant_name(tenant, self.conversation_id, what="conversation_id")
        return TaskFilter(
            **{**plain, **ids, **reader.scope.conditions},
            states=tuple(self.state),
            labels=labels,
            costs_over=max(_bounds(self.cost, ">"), default=None),
            costs_under=min(_bounds(self.cost, "<"), default=None),
            unreplayed=True if self.unreplayed else None,
        )


def _bounds(written: list[str], comparison: str) -> list[int]:
    """Return the microdollars that follow a comparison."""
    return [int(Decimal(each[1:]) * 1_000_000) for each in written if each[0] == comparison]


class TaskPageQuery(TaskQuery, PageQuery):
    """Filters, and the page."""

    outputs: bool = Field(False, description=f"With their outputs: at most {MAX_OUTPUTS} tasks and 8 MB per page.")
    cursor: UUID | None = Field(None, description="The `next` of the previous page.")


class TreePageQuery(PageQuery):
    """A page of a tree of tasks."""

    cursor: UUID | None = Field(None, description="The `next` of the previous page.")


Tasks = Annotated[TaskQuery, Depends(in_namespace(TaskQuery))]
TaskPage = Annotated[TaskPageQuery, Depends(in_namespace(TaskPageQuery))]
TreePage = Annotated[TreePageQuery, Query()]
