"""Tasks as the extension `io.modelcontextprotocol/tasks` has them: states, forms for decisions, updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from mcp.shared.exceptions import MCPError
from mcp_types import ElicitRequest, ElicitResult, RequestParams
from pydantic import Field, ValidationError

from minions.aio.task import AsyncTask
from minions.errors import InvalidInput, NotFound
from orchestrator.mcp import forms
from orchestrator.mcp.callers import Caller, Terms
from orchestrator.mcp.results import result_of

DECIDE = "POST /v1/tasks/{task_id}/decisions"
FOR_PEOPLE = ("approval", "answer")
PARTS = ("result", "error", "inputRequests")
MOST_BELOW = 50
RECENT_SECONDS = 60.0
POLL_MS, SLOW_POLL_MS = 1000, 5000
"""Of a task that changed in the last minute, and of others."""

InputRequests = dict[str, ElicitRequest]


@dataclass(frozen=True, slots=True)
class Awaited:
    """A decision, and the task that waits for it."""

    task_id: str
    agent: str | None
    decision: forms.Decision


class TaskParams(RequestParams):
    """Names a task."""

    task_id: str


class UpdateTaskParams(TaskParams):
    """Answers to the forms of a task."""

    # Not the types of the protocol: an answer that belongs to no open form is ignored, whatever it is.
    input_responses: dict[str, Any] = Field(default_factory=dict)


async def find(caller: Caller, task_id: str, *, wait: float = 0.0) -> AsyncTask:
    """Return a task by its whole id: one that the caller's key does not reach is as unknown as one that never was.

    Raises:
        NotFound: there is none.
    """
    try:
        return await caller.api.look(str(UUID(task_id)), wait=wait)
    except ValueError:
        raise NotFound(f"{task_id[:50]!r} is not the id of a task.") from None


async def created(caller: Caller, task: AsyncTask) -> dict[str, Any]:
    """Return the `CreateTaskResult` of a task, which is stored."""
    found = await detailed(caller, task)
    # A task's first state has no parts.
    return {name: value for name, value in found.items() if name not in PARTS} | {"resultType": "task"}


async def detailed(caller: Caller, task: AsyncTask) -> dict[str, Any]:
    """Return a task with its result, its error, or the forms that its client is asked to fill in."""
    terms = await Terms.of(caller.api)
    if task.final:
        return _ended(caller, task, terms)
    requests = await _forms(caller, task, terms)
    sentence = await caller.api.sentence(task.id)
    if not requests:
        return _task(task, terms, "working", sentence)
    shown = {key: form.model_dump(by_alias=True, mode="json", exclude_none=True) for key, form in requests.items()}
    return {**_task(task, terms, "input_required", sentence), "inputRequests": shown}


async def input_requests(caller: Caller, task: AsyncTask) -> InputRequests:
    """Return the forms for the decisions that a task waits for, by key.

    There are none for a client that shows no forms, and for a key that may not decide: to these, a decision of another
    person is work in progress.
    """
    return await _forms(caller, task, await Terms.of(caller.api))


async def update(caller: Caller, task: AsyncTask, responses: Mapping[str, Any]) -> None:
    """Make the decisions that a client's user has made. Answers to forms that are not open any more are ignored.

    Raises:
        MinionsError: the API refused a decision: the key may not decide, or the task waits for another by now.
    """
    if not responses:
        return
    awaited = await _awaited(caller, task)
    for key in awaited.keys() & responses.keys():
        arguments = forms.decided(awaited[key].decision, _answer_of(key, responses[key]))
        if arguments is not None:
            await caller.api.decide(awaited[key].task_id, **arguments)


def _answer_of(key: str, response: Any) -> ElicitResult:
    try:
        return ElicitResult.model_validate(response)
    except ValidationError:
        raise InvalidInput(
            f"The response {key!r} must be that of a form: an object with `action` (accept, decline or cancel) and "
            "`content`."
        ) from None


async def _forms(caller: Caller, task: AsyncTask, terms: Terms) -> InputRequests:
    if not caller.has_forms or not terms.allow(DECIDE):
        return {}
    awaited = await _awaited(caller, task)
    return {key: forms.form_of(each.decision, _asks(each)) for key, each in awaited.items()}


async def _awaited(caller: Caller, task: AsyncTask) -> dict[str, Awaited]:
    """Return the decisions that a task and the tasks below it wait for, by the keys of their forms: to the client, all
    of them are one task.
    """
    waiting = [(task.id, task.agent)] if task.wait_reason in FOR_PEOPLE else []
    if task.wait_reason == "subtask" and task.parent_id is None:
        below = await caller.api.page(
            "/v1/tasks", root_id=task.id, state="waiting", namespace=task.namespace, limit=MOST_BELOW
        )
        waiting = [(each["id"], each["agent"]) for each in below["items"] if each["wait_reason"] in FOR_PEOPLE]
    return {
        forms.key_of(each) if found == task.id else f"{found}-{forms.key_of(each)}": Awaited(found, agent, each)
        for found, agent in waiting
        for each in await caller.api.decisions(found)
    }


def _ended(caller: Caller, task: AsyncTask, terms: Terms) -> dict[str, Any]:
    if task.state == "cancelled":
        return _task(task, terms, "cancelled", (task.error or {}).get("message"))
    try:
        result = result_of(task, any_json=caller.is_modern)
    except MCPError as error:
        fault = error.error.model_dump(by_alias=True, mode="json", exclude_none=True)
        return {**_task(task, terms, "failed", error.message), "error": fault}
    return {
        **_task(task, terms, "completed"),
        "result": result.model_dump(by_alias=True, mode="json", exclude_none=True),
    }


def _task(task: AsyncTask, terms: Terms, status: str, message: str | None = None) -> dict[str, Any]:
    updated, kept = task.updated_at or task.created_at, terms.kept_until(task)
    recent = (datetime.now(UTC) - updated).total_seconds() < RECENT_SECONDS
    return {
        "taskId": task.id,
        "status": status,
        **({"statusMessage": message} if message else {}),
        "createdAt": task.created_at.isoformat(),
        "lastUpdatedAt": updated.isoformat(),
        "ttlMs": None if kept is None else int((kept - task.created_at).total_seconds() * 1000),
        "pollIntervalMs": POLL_MS if recent else SLOW_POLL_MS,
    }


def _asks(awaited: Awaited) -> str:
    """Return what a form is about."""
    decision = awaited.decision
    call = f"step {decision['step']} of task {awaited.task_id}, {decision['name']}"
    if decision["kind"] == "answer":
        return f"A call was interrupted, and is unsafe to repeat: {call}. Did it happen?"
    several = f" ({decision['approvals']} of {decision['people']} have approved it)" if decision["people"] else ""
    if decision["server"]:
        return f"The MCP server {decision['server']!r} asks about {call}{several}: {decision['question']!r}."
    return f"The agent {awaited.agent!r} asks for the approval of a call: {call}{several}."
