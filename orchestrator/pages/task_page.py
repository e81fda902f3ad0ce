"""One task: why it is in its state and what moves it, its timeline, steps, sub-tasks, conversation and contents."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import Field
from sqlalchemy import Connection

from orchestrator.api import tasks as api
from orchestrator.api.auth import Caller
from orchestrator.api.base_path import link
from orchestrator.api.parameters import StrictQuery, Text
from orchestrator.api.task_ids import TaskId, TaskRef, check_reached, task_id_of
from orchestrator.api.task_models import Execution, Step, Task, TaskSummary
from orchestrator.explain import explain
from orchestrator.pages.access import Reading
from orchestrator.pages.comparing import MOST_STEPS, comparison_of
from orchestrator.pages.conversation import turns_of
from orchestrator.pages.decision_form import decision_of
from orchestrator.pages.forms import DoneQuery
from orchestrator.pages.graph import graph, nodes_of
from orchestrator.pages.moves import DONE, permitted
from orchestrator.pages.rendering import Page, render
from orchestrator.pages.snippets import snippets_of
from orchestrator.pages.timeline import Window, timeline
from orchestrator.task_events import last_event
from shared.contracts.strict_model import Moment
from shared.errors import InvalidInput
from shared.tasks import files, queries
from shared.tasks.states import FINAL

STEPS = 100
CLAIMS = 100
SUBTASKS = 50
TURNS = 50
MOST_GRAPHED = 5000
MOST_NODES = 100

router = APIRouter(route_class=Page, include_in_schema=False)

Number = Annotated[int, Path(ge=1, le=2**31 - 1)]


class TaskPageQuery(StrictQuery):
    """What to show of a task."""

    after: int = Query(0, ge=0, le=2**31 - 1, description="The step before the first one that is shown.")
    done: Text = ""
    begin: Moment | None = Field(None, alias="from", description="The beginning of the timeline.")
    end: Moment | None = Field(None, alias="to", description="Its end.")

    @property
    def window(self) -> Window | None:
        """The part of the timeline to show; None: all of it.

        Raises:
            InvalidInput: it is empty.
        """
        if self.begin is None or self.end is None:
            return None
        if self.begin >= self.end:
            raise InvalidInput("The timeline must end after it begins: `to` must be later than `from`.")
        return self.begin, self.end


class SubtaskQuery(StrictQuery):
    """The page of the sub-tasks."""

    cursor: UUID | None = None


@router.get("/tasks/{task_id}")
def show_task(
    task_id: TaskId, query: Annotated[TaskPageQuery, Query()], request: Request, database: Reading, key: Caller
) -> Response:
    """One task."""
    lease = request.app.state.settings.lease_seconds
    with database.connect() as connection:
        seen = last_event(connection, task_id)  # before the rest: the stream tells of all that is newer
        row = queries.get_task(connection, task_id)
        why = explain(connection, task_id, lease=lease, reader=api.reader_of(key), known=row).as_dict()
        facts = _facts(connection, row, query)
    task = facts["task"]
    ended = task["state"] in FINAL
    return render(
        request,
        "task.html",
        **facts,
        why=why,
        ended=ended,
        can=permitted(key),
        decision=decision_of(database, task_id, why, key),
        snippets=snippets_of(request, task),
        done=DONE.get(query.done),
        live=None if ended else f"/tasks/{task_id}/live?after={seen[0] if seen else 0}",
        after=query.after,
        zoomed=query.window is not None,
    )


@router.get("/tasks/{task_id}/steps/{number}")
def show_step(task_id: TaskId, number: Number, request: Request, database: Reading, key: Caller) -> Response:
    """One step, with everything that it holds."""
    with database.connect() as connection:
        task = queries.get_task(connection, task_id)
        step = queries.get_step(connection, task_id, number)
    return render(
        request,
        "step.html",
        task=_summary(task),
        step=Step.model_validate(step).model_dump(),
        ended=task["state"] in FINAL,
        can=permitted(key),
    )


@router.get("/tasks/{task_id}/conversation")
def show_conversation(
    task_id: TaskId, query: Annotated[TaskPageQuery, Query()], request: Request, database: Reading
) -> Response:
    """What the task and its model said to each other."""
    with database.connect() as connection:
        task = queries.get_task(connection, task_id)
        page = queries.list_steps(connection, task_id, limit=TURNS, after=query.after)
    steps = [Step.model_validate(step).model_dump() for step in page.items]
    return render(
        request, "conversation.html", task=_summary(task), turns=turns_of(steps), next=page.next, after=query.after
    )


@router.get("/tasks/{task_id}/subtasks")
def show_subtasks(
    task_id: TaskId, query: Annotated[SubtaskQuery, Query()], request: Request, database: Reading, key: Caller
) -> Response:
    """The tasks directly below a task, with their states and costs."""
    with database.connect() as connection:
        task = queries.get_task(connection, task_id)
        chosen = replace(queries.reached(key.scope), parent_id=task_id)
        page = queries.list_oldest(connection, chosen, limit=SUBTASKS, after=query.cursor)
        usages = queries.usages_of(connection, [each["id"] for each in page.items])
    return render(
        request,
        "subtasks.html",
        task=_summary(task),
        subtasks=[_summary(each) for each in page.items],
        usages=usages,
        next=page.next,
    )


@router.get("/tasks/{task_id}/graph")
def show_graph(task_id: TaskId, request: Request, database: Reading, key: Caller) -> Response:
    """The chain below a task as a graph: its agents, with the states and costs of their tasks."""
    with database.connect() as connection:
        task = queries.get_task(connection, task_id)
        rows = queries.group_tree(connection, task_id, most=MOST_GRAPHED, within=queries.reached(key.scope))
    nodes = nodes_of(rows, task)
    return render(
        request,
        "graph.html",
        task=_summary(task),
        nodes=nodes[:MOST_NODES],
        picture=graph(nodes[:MOST_NODES]),
        is_cut=len(nodes) > MOST_NODES or sum(node.number for node in nodes) >= MOST_GRAPHED,
    )


@router.get("/tasks/{task_id}/diff/{other_id}")
def show_diff(
    task_id: TaskId,
    other_id: Annotated[TaskRef, Path()],
    query: Annotated[DoneQuery, Query()],
    request: Request,
    database: Reading,
    key: Caller,
) -> Response:
    """The differences between two tasks. It follows the second one until that has ended."""
    with database.connect() as connection:
        other = task_id_of(connection, other_id, key.scope)
        check_reached(connection, other, key.scope)
        seen = last_event(connection, other)  # before the rest: the stream tells of all that is newer
        compared = comparison_of(connection, task_id, other, key.scope)
    ended = compared.found.b.task.state in FINAL
    return render(
        request,
        "diff.html",
        found=compared.found,
        is_cut=compared.is_cut,
        most=MOST_STEPS,
        a=task_id,
        b=other,
        ended=ended,
        replayed=query.done == "replay",
        live=None if ended else f"/tasks/{other}/live?after={seen[0] if seen else 0}",
    )


def _facts(connection: Connection, row: dict[str, Any], query: TaskPageQuery) -> dict[str, Any]:
    task_id = row["id"]
    steps = queries.list_step_summaries(connection, task_id, limit=STEPS, after=query.after)
    claims = queries.list_executions(connection, task_id, limit=CLAIMS)
    executions = [Execution.model_validate(each).model_dump() for each in claims.items]
    usages = queries.usages_of(connection, [task_id])
    task = Task.model_validate(row).model_dump()
    return {
        "task": task,
        "steps": steps.items,
        "next": steps.next,
        "executions": executions,
        "more_claims": claims.next is not None,
        "usage": usages.get(task_id, {"input_tokens": 0, "output_tokens": 0, "cost_microdollars": 0}),
        "picture": timeline(task, executions, steps.items, partial(_zoom, task_id, query.after), query.window),
        "talks": any(step["kind"] == "model_call" for step in steps.items),
        "files": files.of_task(connection, task_id),
        "has_subtasks": any(step["kind"] == "subtask" for step in steps.items),
    }


def _zoom(task_id: UUID, after: int, begin: datetime, end: datetime) -> str:
    """Return the address of the page with a part of its timeline."""
    times = {name: at.astimezone(UTC).isoformat(timespec="milliseconds") for name, at in (("from", begin), ("to", end))}
    return f"{link(f'/tasks/{task_id}')}?{urlencode({**times, **({'after': after} if after else {})})}#timeline"


def _summary(task: dict[str, Any]) -> dict[str, Any]:
    return TaskSummary.model_validate({**task, "output": None}).model_dump()
