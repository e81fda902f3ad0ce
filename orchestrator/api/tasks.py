"""Tasks over HTTP: submit, look, wait, cancel, replay."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import StringConstraints
from sqlalchemy import Connection, Engine
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import State

from orchestrator import task_acts
from orchestrator.api import body, problems, submission_bounds
from orchestrator.api.actors import Actor
from orchestrator.api.auth import Caller
from orchestrator.api.base_path import link
from orchestrator.api.finish_watch import FinishWatch, Heard
from orchestrator.api.parameters import Database, ItemPage, NumberedPage, Statements, StrictQuery
from orchestrator.api.task_filters import TaskPage, Tasks, TreePage
from orchestrator.api.task_ids import TaskId, check_reached, is_reached
from orchestrator.api.task_models import (
    BULK_LIMIT,
    AwaitedDecisions,
    BulkResult,
    CancelRequest,
    Counts,
    DecidedTask,
    DecisionRequest,
    Execution,
    LabelRequest,
    ReplayRequest,
    SignalRequest,
    Step,
    Task,
    TaskSummary,
    Why,
    check_private,
)
from orchestrator.api.waits import LONGEST_WAIT, wait_within
from orchestrator.explain import Reader, explain
from orchestrator.replay_from import Edit, replay_from
from shared.access import actors
from shared.access.actors import Key
from shared.access.roles import Permission
from shared.audit import log
from shared.contracts.requests import BudgetChange, TaskRequest
from shared.contracts.strict_json import check
from shared.database.connections import autocommit
from shared.errors import InvalidInput, MinionError
from shared.settings import get_settings
from shared.tasks import approvals, budgets, lifecycle, queries, submission
from shared.tasks.lifecycle import Accepted, Dispatched
from shared.tasks.queries import Page
from shared.tasks.undecided import undecided
from shared.trace_context import HEADER, read_header

REQUEST_SCHEMA = TaskRequest.model_json_schema()
BULK_SCHEMA = {
    "title": "TasksRequest",
    "type": "object",
    "required": ["tasks"],
    "additionalProperties": False,
    "properties": {"tasks": {"type": "array", "maxItems": BULK_LIMIT, "items": {"$ref": "#/$defs/TaskRequest"}}},
    "$defs": {"TaskRequest": REQUEST_SCHEMA},
}

SignalName = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
IdempotencyKey = Annotated[str | None, Header(description="The same as the member `idempotency_key` of the body.")]


def read_traceparent(
    request: Request,
    traceparent: Annotated[
        str | None,
        Header(description="The caller's span (W3C Trace Context), for tasks that have no `traceparent`."),
    ] = None,
) -> str | None:
    """Return the caller's span from the headers; None if they name none, or not exactly one that is valid."""
    return read_header(traceparent) if len(request.headers.getlist(HEADER)) == 1 else None


CallersSpan = Annotated[str | None, Depends(read_traceparent)]

router = APIRouter(prefix="/v1/tasks", tags=["tasks"])


class WaitQuery(StrictQuery):
    """Maximum wait."""

    wait: float = Query(0, ge=0, le=LONGEST_WAIT, description="Seconds to wait for the task to end.")


@router.post(
    "",
    status_code=201,
    response_model=Task,
    responses={200: {"model": Task, "description": "Submitted before"}, **problems.documented(404, 409, 413, 415)},
    openapi_extra=body.documented(REQUEST_SCHEMA),
)
async def submit_task(
    sent: body.TaskBody,
    query: Annotated[WaitQuery, Query()],
    request: Request,
    database: Statements,
    response: Response,
    key: Caller,
    callers_span: CallersSpan,
    idempotency_key: IdempotencyKey = None,
) -> dict[str, Any]:
    """Accepts one task. With an idempotency key the call may be repeated: the first call creates the task (201), later
    ones return it (200), and another payload under the same key is refused (409). With `wait` the answer comes when the
    task has ended, or when the time is up: check `state`. A body of more than 64 KB is answered at once."""
    watch: FinishWatch = request.app.state.finish_watch
    with watch.hearing() if query.wait else nullcontext() as heard:
        accepted = await run_in_threadpool(_accept, request.app.state, sent, idempotency_key, callers_span, key)
        _describe(accepted, response)
        if heard is not None and not accepted.created:
            heard.all = False  # The task may have ended before.
        # A large body takes up the API's memory until it is answered.
        seconds = query.wait if len(sent) <= body.ENVELOPE_BYTES else 0
        return await _load_ended(request, database, accepted.task_id, seconds, heard)


@router.post(
    "/bulk",
    status_code=201,
    response_model=BulkResult,
    responses=problems.documented(404, 409, 413, 415),
    openapi_extra=body.documented(BULK_SCHEMA),
)
def submit_tasks(sent: body.BulkBody, database: Database, key: Caller, callers_span: CallersSpan) -> dict[str, Any]:
    """Accepts up to 10,000 tasks, all or none. A refusal names the first task that is wrong as `index`."""
    requests = [_traced(each, callers_span) for each in _parse_many(body.parse_object(sent), key)]
    with submission_bounds.kept(database, requests, key.scope):
        prepared = submission.prepare(
            database, requests, submitted_by=key.submitter, submitter_key=key.identity, scope=key.scope
        )
        with database.begin() as connection:
            accepted = submission.accept(connection, prepared)
            submission_bounds.check_earlier(connection, accepted, key.scope)
    return {"tasks": [{"id": task.task_id, "created": task.created} for task in accepted]}


@router.get("", response_model=ItemPage[TaskSummary], response_model_exclude_unset=True)
def list_tasks(query: TaskPage, database: Statements, key: Caller) -> Page:
    """Tasks, the newest first."""
    with database.connect() as connection:
        chosen = query.chosen(connection, key)
        return queries.list_tasks(
            connection, chosen, limit=query.limit, before=query.cursor, with_outputs=query.outputs
        )


@router.get("/counts", response_model=Counts)
def count_tasks(query: Tasks, database: Statements, key: Caller) -> dict[str, Any]:
    """The number of tasks in each state, in total and for each capability."""
    with database.connect() as connection:
        by_capability = queries.count_tasks(connection, query.chosen(connection, key))
    by_state: dict[str, int] = {}
    for counts in by_capability.values():
        for state, number in counts.items():
            by_state[state] = by_state.get(state, 0) + number
    return {"by_state": by_state, "by_capability": by_capability}


@router.get("/{task_id}", response_model=Task, responses=problems.documented(404))
async def get_task(
    task_id: TaskId, query: Annotated[WaitQuery, Query()], request: Request, database: Statements
) -> dict[str, Any]:
    """One task. With `wait` the answer comes when the task has ended, or when the time is up: check `state`."""
    return await _load_ended(request, database, task_id, query.wait)


@router.get("/{task_id}/steps", response_model=ItemPage[Step], responses=problems.documented(404))
def list_steps(task_id: TaskId, query: NumberedPage, database: Statements) -> Page:
    """The task's journal: every model call, tool call, function call, sub-task and wait."""
    with database.connect() as connection:
        return queries.list_steps(connection, task_id, limit=query.limit, after=query.cursor)


@router.get("/{task_id}/executions", response_model=ItemPage[Execution], responses=problems.documented(404))
def list_executions(task_id: TaskId, query: NumberedPage, database: Statements) -> Page:
    """Every claim of the task: which minion, when, how it ended, and what it used."""
    with database.connect() as connection:
        return queries.list_executions(connection, task_id, limit=query.limit, after=query.cursor)


@router.get(
    "/{task_id}/tree",
    response_model=ItemPage[TaskSummary],
    response_model_exclude_unset=True,
    responses=problems.documented(404),
)
def list_tree(task_id: TaskId, query: TreePage, database: Statements, key: Caller) -> Page:
    """The task and everything below it, the oldest first; `parent_id` and `depth` show how they are related."""
    within = queries.reached(key.scope)
    with database.connect() as connection:
        return queries.list_tree(connection, task_id, limit=query.limit, after=query.cursor, within=within)


@router.post(
    "/{task_id}/cancel",
    response_model=Task,
    responses=problems.documented(404, 413, 415),
    openapi_extra=body.documented(CancelRequest.model_json_schema(), required=False),
)
def cancel_task(task_id: TaskId, sent: body.TaskBody, database: Database, actor: Actor) -> dict[str, Any]:
    """Cancels a task and everything below it. A running one is asked to stop (`cancel_requested`); one that has
    ended stays as it is. May be repeated."""
    asked = body.parse_model(CancelRequest, sent, required=False)
    with database.begin() as connection:
        return task_acts.cancel(connection, task_id, actor, reason=asked.reason)


@router.post(
    "/{task_id}/replay",
    status_code=201,
    response_model=Task,
    responses=problems.documented(404, 409, 413, 415),
    openapi_extra=body.documented(ReplayRequest.model_json_schema(), required=False),
)
def replay_task(
    task_id: TaskId, sent: body.TaskBody, database: Database, response: Response, actor: Actor
) -> dict[str, Any]:
    """Submits a task that has ended again, as a new task; the old one stays as it was."""
    asked = body.parse_model(ReplayRequest, sent, required=False)
    accepted = _replay(database, task_id, asked, actor)
    _describe(accepted, response)
    return _load(autocommit(database), accepted.task_id)


@router.patch(
    "/{task_id}/labels",
    response_model=Task,
    responses=problems.documented(404, 413, 415),
    openapi_extra=body.documented(LabelRequest.model_json_schema()),
)
def label_task(task_id: TaskId, sent: body.TaskBody, database: Database, actor: Actor) -> dict[str, Any]:
    """Sets labels of a task; null removes one. Other labels stay, and so do those of the tasks below it. A name that
    begins with `private.` needs `payloads:read` too."""
    asked = body.parse_model(LabelRequest, sent)
    check_private(asked.labels, actor.key)
    with database.begin() as connection:
        return task_acts.label(connection, task_id, actor, labels=asked.labels)


@router.get("/{task_id}/why", name="explain_task", response_model=Why, responses=problems.documented(404))
def why(task_id: TaskId, request: Request, database: Statements, key: Caller) -> dict[str, Any]:
    """Explain the current state of the task: one sentence, the facts, and what would let it continue."""
    lease = request.app.state.settings.lease_seconds
    with database.connect() as connection:
        return explain(connection, task_id, lease=lease, reader=reader_of(key)).as_dict()


@router.post(
    "/{task_id}/signals/{name}",
    status_code=202,
    response_model=Task,
    responses=problems.documented(404, 409, 413, 415),
    openapi_extra=body.documented(SignalRequest.model_json_schema(), required=False),
)
def signal_task(
    task_id: TaskId, name: SignalName, sent: body.TaskBody, database: Database, actor: Actor
) -> dict[str, Any]:
    """Sends a signal to a task. It is kept until the task waits for it; each wait takes one."""
    payload = body.parse_model(SignalRequest, sent, required=False).payload
    check(payload, what="The payload", limit=get_settings().max_input_bytes)
    with database.begin() as connection:
        before = task_acts.state_of(connection, task_id)
        lifecycle.signal(connection, task_id, name, payload)
        task = queries.get_task(connection, task_id)
        _record(connection, actor, "task.signal", task, before, {"signal": name})
        return task


@router.get("/{task_id}/decisions", response_model=AwaitedDecisions, responses=problems.documented(404))
def list_decisions(task_id: TaskId, database: Statements) -> dict[str, Any]:
    """The decisions that a task waits for, each with what a person needs to make it. A key without the permission
    `payloads:read` sees neither the arguments nor their schema."""
    with database.connect() as connection:
        queries.get_task(connection, task_id)
        return {"items": undecided(connection, task_id)}


@router.post(
    "/{task_id}/decisions",
    name="decide_task",
    response_model=DecidedTask,
    responses=problems.documented(404, 409, 413, 415),
    openapi_extra=body.documented(DecisionRequest.model_json_schema()),
)
def decide(task_id: TaskId, sent: body.TaskBody, database: Database, actor: Actor) -> dict[str, Any]:
    """Decides about a step that waits for a person: approves or rejects a call, or states the outcome of one that was
    interrupted. With an approval policy, several keys may have to approve: `decision` says how many have.

    The decision must name the step or the proposal that it is about, and is refused if the task waits for another.
    """
    asked = body.parse_model(DecisionRequest, sent)
    check(asked.value, what="The value", limit=get_settings().max_input_bytes)
    arguments = asked.value if asked.verdict == "approve" else None
    with autocommit(database).connect() as connection:
        approver = approvals.judge(
            connection, task_id, asked.step, asked.proposal, arguments, key=actor.key,
            approves=asked.verdict == "approve",
        )  # fmt: skip
    with database.begin() as connection:
        before = task_acts.state_of(connection, task_id)
        decided = lifecycle.decide(connection, task_id, who=str(actor), approver=approver, **asked.model_dump())
        task = queries.get_task(connection, task_id)
        named = {"step": decided.step, "name": decided.name, "proposal": decided.proposal, "verdict": decided.verdict}
        policy = {} if decided.people is None else {"approvals": decided.approvals, "needed": decided.people}
        after = {**named, **policy, "replaced": asked.value is not None}
        _record(connection, actor, "task.decide", task, before, after)
        return {**task, "decision": decided}


@router.post(
    "/{task_id}/budget",
    response_model=Task,
    responses=problems.documented(404, 409, 413, 415),
    openapi_extra=body.documented(BudgetChange.model_json_schema()),
)
def change_budget(task_id: TaskId, sent: body.TaskBody, database: Database, actor: Actor) -> dict[str, Any]:
    """Raises the budget that the task waits for, or else its own, and wakes the tasks that now have room in it. With
    `stop`, tasks without room in it fail. Returns the task that has the budget."""
    asked = body.parse_model(BudgetChange, sent)
    with database.begin() as connection:
        owner = budgets.change(connection, task_id, asked)
        check_reached(connection, owner, actor.key.scope)
        task = queries.get_task(connection, owner)
        limits = {name: task["budget"][name]["limit"] for name in ("tokens", "dollars", "steps", "seconds")}
        log.record(
            connection, actor, "task.budget", owner, namespace=task["namespace"],
            after={**asked.model_dump(exclude_none=True), "limits": limits},
        )  # fmt: skip
        return task


def _replay(database: Engine, task_id: UUID, asked: ReplayRequest, actor: actors.Actor) -> Accepted:
    if asked.from_step is None:
        with database.begin() as connection:
            return task_acts.replay(connection, task_id, actor, pinned=bool(asked.pinned), new_keys=asked.new_keys)
    with autocommit(database).connect() as connection:
        task_acts.check_conversation(connection, queries.get_task(connection, task_id), actor.key.scope)

    def record(connection: Connection, new: UUID) -> None:
        """Write the act, in the transaction that creates the new task."""
        task, edited = queries.get_task(connection, new), "edited_output" in asked.model_fields_set
        how = {"replayed_as": new, "from_step": asked.from_step, "pinned": asked.pinned, "new_keys": asked.new_keys}
        act = "task.edit" if edited else "task.replay"
        log.record(connection, actor, act, task_id, namespace=task["namespace"], after=how)

    edit = Edit(asked.edited_output) if "edited_output" in asked.model_fields_set else None
    if edit is not None:
        # To edit what a person approved is to decide.
        with autocommit(database).connect() as connection:
            if approvals.is_approval(connection, task_id, asked.from_step):
                actor.key.require(Permission.TASKS_DECIDE)
    replayed = replay_from(
        database, task_id, asked.from_step, edit=edit, latest=asked.pinned is False, new_keys=asked.new_keys,
        submitted_by=str(actor), key=actor.key, record=record,
    )  # fmt: skip
    return Accepted(replayed, True)


def _record(
    connection: Connection,
    actor: actors.Actor,
    act: str,
    task: dict[str, Any],
    before: dict[str, Any] | None,
    how: dict[str, Any],
) -> None:
    after = {"state": task["state"], **how}
    log.record(connection, actor, act, task["id"], namespace=task["namespace"], before=before, after=after)


def reader_of(key: Key) -> Reader:
    """Return what explanations may say to a key."""
    return Reader(payloads=key.may(Permission.PAYLOADS_READ), reaches=lambda c, task: is_reached(c, task, key.scope))


def _accept(state: State, sent: bytes, idempotency_key: str | None, callers_span: str | None, key: Key) -> Accepted:
    """Accept a task, and publish its message if a slot is free for it."""
    request = TaskRequest.parse(key.scope.narrow(_with_key(body.parse_object(sent), idempotency_key)))
    request = _traced(request, callers_span)
    with submission_bounds.kept(state.statements, [request], key.scope):
        accepted, message = _accept_known(state, request, key) or _accept_resolved(state, request, key)
        if message is not None:
            state.publisher.publish(message)
        if not accepted.created:
            with state.statements.connect() as connection:
                submission_bounds.check_earlier(connection, [accepted], key.scope)
    return accepted


def _accept_known(state: State, request: TaskRequest, key: Key) -> tuple[Accepted, Dispatched | None] | None:
    """Accept a task of an agent that was resolved before. Return None if the agent must be resolved again."""
    known: submission.KnownTargets = state.known_targets
    task = known.prepare(request, submitted_by=key.submitter, submitter_key=key.identity)
    if task is None:
        return None
    with state.statements.connect() as connection:
        lease = state.settings.lease_seconds
        return lifecycle.accept_now(connection, task, lease=lease, expected=UUID(task["validated"]))


def _accept_resolved(state: State, request: TaskRequest, key: Key) -> tuple[Accepted, Dispatched | None]:
    [task] = submission.prepare(
        state.statements,
        [request],
        submitted_by=key.submitter,
        submitter_key=key.identity,
        known=state.known_targets,
        scope=key.scope,
    )
    with state.statements.connect() as connection:
        accepted = lifecycle.accept_now(connection, task, lease=state.settings.lease_seconds)
    assert accepted is not None
    return accepted


async def _load_ended(
    request: Request, database: Engine, task_id: UUID, seconds: float, heard: Heard | None = None
) -> dict[str, Any]:
    """Return a task when it has ended, or when the time is up.

    Args:
        heard: the ends that were heard since before the request was accepted; None if it submits no task.

    Raises:
        Unauthorized: the key is no longer valid.
    """
    if seconds:
        watch: FinishWatch = request.app.state.finish_watch
        with watch.expecting(task_id, heard) as expectation:
            await wait_within(seconds, expectation, request)
    return await run_in_threadpool(_load, database, task_id)


def _load(database: Engine, task_id: UUID) -> dict[str, Any]:
    with database.connect() as connection:
        return queries.get_task(connection, task_id)


def _describe(accepted: Accepted, response: Response) -> None:
    response.status_code = 201 if accepted.created else 200
    response.headers["Location"] = link(f"/v1/tasks/{accepted.task_id}")


def _traced(request: TaskRequest, callers_span: str | None) -> TaskRequest:
    """Return the request with the caller's span, unless it names another."""
    if callers_span is None or request.traceparent is not None:
        return request
    return request.model_copy(update={"traceparent": callers_span})


def _with_key(data: dict[str, Any], header: str | None) -> dict[str, Any]:
    """Add the idempotency key in the header to the request, which may contain it too."""
    if header is None:
        return data
    if data.get("idempotency_key", header) != header:
        raise InvalidInput("The header Idempotency-Key and `idempotency_key` in the body differ: send one of them.")
    return {**data, "idempotency_key": header}


def _parse_many(data: dict[str, Any], key: Key) -> list[TaskRequest]:
    given = data.get("tasks")
    if not isinstance(given, list) or len(data) > 1:
        raise InvalidInput('A bulk request must be {"tasks": [{"agent": "NAME", "input": {}}, …]} and nothing else.')
    if len(given) > BULK_LIMIT:
        raise InvalidInput(
            f"{len(given):,} tasks in one request; at most {BULK_LIMIT:,} are accepted. Send several requests."
        )
    return [_parse_one(index, item, len(given), key) for index, item in enumerate(given)]


def _parse_one(index: int, item: Any, total: int, key: Key) -> TaskRequest:
    try:
        return TaskRequest.parse(key.scope.narrow(item) if isinstance(item, dict) else item)
    except MinionError as error:
        raise submission.refusal(error, index, total) from None
