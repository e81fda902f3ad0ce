"""Acts from forms. Each does what an endpoint of the API does, by the same function, with its row in the audit log."""

from __future__ import annotations

from typing import Any, get_args

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from orchestrator.api import rules
from orchestrator.api import tasks as api
from orchestrator.api.actors import Actor
from orchestrator.api.auth import Caller
from orchestrator.api.parameters import Database, NamespaceQuery
from orchestrator.api.task_ids import TaskId
from orchestrator.pages.access import Form, Reading
from orchestrator.pages.decision_form import decided_value, decision_of
from orchestrator.pages.forms import as_amount, as_body, as_json, as_number, done
from orchestrator.pages.moves import permitted
from orchestrator.pages.rendering import Page, render
from shared.access.actors import Key
from shared.errors import InvalidInput, MinionError
from shared.tasks import queries
from shared.tasks.throttles import Scope

RAISED = ("tokens", "dollars", "steps", "seconds")

router = APIRouter(route_class=Page, include_in_schema=False)


@router.post("/tasks/{task_id}/cancel")
def cancel(task_id: TaskId, form: Form, database: Database, actor: Actor) -> Response:
    """Cancels the task and everything below it."""
    reason = form.get("reason", "").strip()
    api.cancel_task(task_id, as_body({"reason": reason} if reason else {}), database, actor)
    return done(f"/tasks/{task_id}", "cancel")


@router.post("/tasks/{task_id}/replay")
def replay(task_id: TaskId, form: Form, database: Database, actor: Actor) -> Response:
    """Runs an ended task again, from its beginning or from a step."""
    asked: dict[str, Any] = {"new_keys": "new_keys" in form}
    if form.get("from_step"):
        asked["from_step"] = as_number(form["from_step"], "The step")
        if "edit" in form:
            asked["edited_output"] = as_json(form.get("edited_output", ""), "The edited output")
    elif "pinned" in form:
        asked["pinned"] = True
    new = api.replay_task(task_id, as_body(asked), database, Response(), actor)
    return done(f"/tasks/{task_id}/diff/{new['id']}" if "from_step" in asked else f"/tasks/{new['id']}", "replay")


@router.post("/tasks/{task_id}/signal")
def signal(task_id: TaskId, form: Form, database: Database, actor: Actor) -> Response:
    """Sends a signal to the task."""
    name = form.get("name", "")
    if not 0 < len(name) <= 200 or "\x00" in name:
        raise InvalidInput("The name of a signal must have 1 to 200 characters, without U+0000.")
    payload = form.get("payload", "").strip()
    sent = {"payload": as_json(payload, "The payload")} if payload else {}
    api.signal_task(task_id, name, as_body(sent), database, actor)
    return done(f"/tasks/{task_id}", "signal")


@router.post("/tasks/{task_id}/budget")
def raise_budget(task_id: TaskId, form: Form, database: Database, actor: Actor) -> Response:
    """Raises the budget that the task waits for, or lets it fail."""
    what = form.get("what", "")
    if "stop" in form:
        asked: dict[str, Any] = {"stop": True}
    elif what in RAISED:
        asked = {f"add_{what}": as_amount(form.get("amount", ""), "The amount")}
    else:
        raise InvalidInput(f"A budget must be raised by one of {', '.join(RAISED)}.")
    api.change_budget(task_id, as_body(asked), database, actor)
    return done(f"/tasks/{task_id}", "budget")


@router.post("/tasks/{task_id}/resume")
def resume(task_id: TaskId, form: Form, database: Database, actor: Actor) -> Response:
    """Ends the pause that holds the task back, for all tasks that it holds back."""
    scope, name = form.get("scope", ""), form.get("name", "")
    if scope not in get_args(Scope):
        raise InvalidInput(f"A pause must be of one of {', '.join(get_args(Scope))}.")
    with database.connect() as connection:
        namespace = queries.get_task(connection, task_id)["namespace"]
    rules.resume(scope, name, NamespaceQuery(namespace=namespace), database, actor)  # type: ignore[arg-type]
    return done(f"/tasks/{task_id}", "resume")


@router.post("/tasks/{task_id}/decide")
async def decide(
    task_id: TaskId, form: Form, request: Request, database: Database, reading: Reading, actor: Actor, key: Caller
) -> Response:
    """Approves or rejects a proposed call, or answers what became of an interrupted one.

    A form with a mistake comes back with it, and with everything that was typed.
    """
    try:
        verdict = await run_in_threadpool(_decide, task_id, form, database, actor)
    except MinionError as error:
        if error.status not in (409, 422):
            raise
        return await run_in_threadpool(_corrected, request, task_id, form, error, reading, key)
    target = "/inbox" if form.get("next") == "inbox" else f"/tasks/{task_id}"
    return done(target, verdict)


def _decide(task_id: TaskId, form: dict[str, str], database: Database, actor: Actor) -> str:
    verdict = form.get("verdict", "")
    asked: dict[str, Any] = {"verdict": "approve" if verdict == "edit" else verdict}
    if form.get("step"):
        asked["step"] = as_number(form["step"], "The step")
    if form.get("proposal"):
        asked["proposal"] = form["proposal"]
    if form.get("reason", "").strip():
        asked["reason"] = form["reason"].strip()
    if verdict in ("edit", "result"):
        with database.connect() as connection:
            asked["value"] = decided_value(connection, task_id, form)
    api.decide(task_id, as_body(asked), database, actor)
    return verdict


def _corrected(
    request: Request, task_id: TaskId, form: dict[str, str], error: MinionError, reading: Reading, key: Key
) -> Response:
    why = api.why(task_id, request, reading, key)
    return render(
        request,
        "decision.html",
        error.status,
        task={"id": task_id},
        why=why,
        can=permitted(key),
        decision=decision_of(reading, task_id, why, key, form),
        problem=error.message,
    )
