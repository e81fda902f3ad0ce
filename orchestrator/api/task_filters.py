"""Which tasks a list or a count is about, as query parameters."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import Query
from pydantic import Field, StringConstraints

from orchestrator.api.parameters import PageQuery, StrictQuery, Text
from shared.schemas import Moment
from shared.states import State
from shared.tasks import TaskFilter

Label = Annotated[str, StringConstraints(pattern=r"^[^:\x00]+:[^\x00]*$", max_length=1000)]


class TaskQuery(StrictQuery):
    """Filters; all that are given must hold."""

    namespace: Text = "default"
    state: list[State] = Field([], description="One of these states.")
    agent: Text | None = None
    capability: Text | None = None
    key: Text | None = Field(None, description="The tenant.")
    label: list[Label] = Field([], description="`name:value`; all of them.", examples=[["team:search"]])
    root_id: UUID | None = None
    parent_id: UUID | None = None
    replay_of: UUID | None = None
    conversation_id: Text | None = None
    created_after: Moment | None = Field(None, description="Inclusive, with a time zone.")
    created_before: Moment | None = Field(None, description="Exclusive, with a time zone.")

    def chosen(self) -> TaskFilter:
        """The filter for `shared.tasks`."""
        plain = self.model_dump(include=set(TaskQuery.model_fields) - {"state", "label"})
        labels = dict(label.split(":", 1) for label in self.label)
        return TaskFilter(**plain, states=tuple(self.state), labels=labels)


class TaskPageQuery(TaskQuery, PageQuery):
    """Filters, and which page."""

    cursor: UUID | None = Field(None, description="The `next` of the page before.")


class TreePageQuery(PageQuery):
    """A page of a tree of tasks."""

    cursor: UUID | None = Field(None, description="The `next` of the page before.")


Tasks = Annotated[TaskQuery, Query()]
TaskPage = Annotated[TaskPageQuery, Query()]
TreePage = Annotated[TreePageQuery, Query()]
