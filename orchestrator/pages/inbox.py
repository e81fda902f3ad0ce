"""The inbox: decisions that wait for a person, the oldest first."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import UUID as PgUUID

from orchestrator.api import masking
from orchestrator.api import tasks as api
from orchestrator.api.auth import Caller
from orchestrator.api.parameters import StrictQuery, Text
from orchestrator.api.task_ids import TaskId
from orchestrator.api.task_models import TaskSummary
from orchestrator.pages.access import Reading
from orchestrator.pages.decision_form import decision_of
from orchestrator.pages.formats import as_text
from orchestrator.pages.moves import DONE, permitted
from orchestrator.pages.rendering import Page, raw, render
from shared.access.scope import Scope
from shared.contracts.key_order import ordered
from shared.errors import NotFound
from shared.tasks import queries
from shared.tasks.queries import TaskFilter, reached

ROWS = 50
MOST_COUNTED = 10_000
LONGEST_INPUT = 4000
# The step that each task waits for, as `orchestrator.explain` finds it; large arguments are on the decision's page.
DECISIONS = text(
    """
    SELECT d.* FROM unnest(:tasks) AS t (id) CROSS JOIN LATERAL (
        SELECT w.task_id, w.number AS step, w.name, w.started_at, w.due_at, minion_proposal(w) AS proposal,
               w.approvals->'edited' AS edited,
               w.kind = 'wait' AND COALESCE(w.input ? 'approval', false) AS is_approval, minion_asks(w) AS asks,
               CASE WHEN octet_length(w.input::text) <= :most THEN w.input END AS input, w.input_order,
               CASE WHEN octet_length(w.approvals::text) <= :most THEN w.approvals END AS approvals
            FROM steps w WHERE w.task_id = t.id AND w.status = 'started'
            ORDER BY w.effect <> 'unsafe',
                     NOT COALESCE(w.kind = 'wait' AND w.input ? 'approval', minion_asks(w)), w.number
            LIMIT 1) d
    """
).bindparams(bindparam("tasks", type_=ARRAY(PgUUID)), bindparam("most", LONGEST_INPUT))

router = APIRouter(route_class=Page, include_in_schema=False)


class InboxQuery(StrictQuery):
    """The page, and what was just done."""

    cursor: UUID | None = None
    done: Text = ""


@router.get("/inbox")
def show_inbox(query: Annotated[InboxQuery, Query()], request: Request, database: Reading, key: Caller) -> Response:
    """The decisions that wait for a person."""
    chosen = waiting_for_people(key.scope)
    with database.connect() as connection:
        page = queries.list_oldest(connection, chosen, limit=ROWS, after=query.cursor)
        count = queries.count_up_to(connection, chosen, MOST_COUNTED + 1)
        decisions = _decisions(connection, [task["id"] for task in page.items])
    return render(
        request,
        "inbox.html",
        tasks=[TaskSummary.model_validate(task).model_dump() for task in page.items],
        decisions=decisions,
        next=page.next,
        count=count,
        most_counted=MOST_COUNTED,
        can=permitted(key),
        done=DONE.get(query.done),
        live="/inbox/live",
    )


@router.get("/inbox/{task_id}")
def show_decision(task_id: TaskId, request: Request, database: Reading, key: Caller) -> Response:
    """One decision, with everything that it is about."""
    why = api.why(task_id, request, database, key)
    return render(
        request,
        "decision.html",
        task={"id": task_id},
        why=why,
        can=permitted(key),
        decision=decision_of(database, task_id, why, key),
        problem=None,
    )


@router.get("/inbox/{task_id}/raw")
def show_proposed(task_id: TaskId, request: Request, database: Reading, key: Caller) -> Response:
    """All that a decision is about, as it would run now."""
    decision = decision_of(database, task_id, api.why(task_id, request, database, key), key)
    if decision is None:
        raise NotFound(f"Task {task_id} waits for no decision.")
    return raw(as_text(decision.proposed))


def waiting_for_people(scope: Scope) -> TaskFilter:
    """Return the filter for the tasks of a scope that wait for a decision."""
    return replace(reached(scope), for_people=True)


def _decisions(connection: Connection, tasks: list[UUID]) -> dict[UUID, dict[str, Any]]:
    rows = connection.execute(DECISIONS, {"tasks": tasks}).mappings()
    return {row["task_id"]: {**row, "arguments": masking.payload(_arguments(dict(row)))} for row in rows}


def _arguments(row: dict[str, Any]) -> Any:
    """Return the arguments that would run; None if they are large."""
    if row["edited"]:
        edited = row["approvals"]
        return ordered(edited["arguments"], edited["order"]) if edited else None
    if row["input"] is None:
        return None
    shown = ordered(row["input"], row["input_order"])
    return shown["approval"] if row["is_approval"] else shown
