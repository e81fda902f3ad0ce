"""Trying an agent: a form made from its input schema, with a budget, which submits a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import Connection, Engine, text
from starlette.concurrency import run_in_threadpool

from orchestrator.api import agents
from orchestrator.api import tasks as api
from orchestrator.api.auth import Caller
from orchestrator.api.parameters import Namespace, NamespaceQuery, Text
from orchestrator.api.tasks import WaitQuery
from orchestrator.pages.access import Form, Reading
from orchestrator.pages.forms import as_amount, as_body, as_json, done
from orchestrator.pages.rendering import Page, render
from orchestrator.pages.rights import TOOLS
from orchestrator.pages.schema_form import fields_of, values_of
from shared.access.actors import Key
from shared.access.scope import ANY
from shared.contracts.key_order import ordered
from shared.errors import MinionError

BUDGET = ("dollars", "tokens", "steps", "seconds")
CORRECTABLE = (403, 409, 422)
# If an agent has no schema, that of the tool or function that it runs, for readers who may see those.
SCHEMA = text(
    """
    SELECT s.schema, s.key_order FROM agents a JOIN agent_versions v ON v.id = a.active_version_id
        LEFT JOIN tool_versions t ON t.id = v.tool_version_id
        LEFT JOIN function_versions f ON f.id = COALESCE(v.function_version_id, t.function_version_id),
        LATERAL (VALUES (1, v.definition->'input_schema', v.key_order), (2, t.definition->'input_schema', t.key_order),
                        (3, f.definition->'input_schema', f.key_order)) AS s (rank, schema, key_order)
        WHERE a.namespace = :namespace AND a.name = :name AND jsonb_typeof(s.schema) = 'object'
            AND (s.rank = 1 OR :inherited)
        ORDER BY s.rank LIMIT 1
    """
)

router = APIRouter(route_class=Page, include_in_schema=False)


@router.get("/agents/{name}/try")
def show_form(name: Text, query: Namespace, request: Request, database: Reading, key: Caller) -> Response:
    """The form."""
    return _form(name, query, request, database, key, {})


@router.post("/agents/{name}/try")
async def submit(
    name: Text, form: Form, query: Namespace, request: Request, database: Reading, key: Caller
) -> Response:
    """Submits a task with the input of the form, as a caller of the API would."""
    try:
        asked = await run_in_threadpool(_asked, name, form, query, database, key)
        statements: Engine = request.app.state.statements
        task = await api.submit_task(as_body(asked), WaitQuery(wait=0), request, statements, Response(), key, None)
    except MinionError as error:
        if error.status not in CORRECTABLE:
            raise
        return await run_in_threadpool(_form, name, query, request, database, key, form, error)
    return done(f"/tasks/{task['id']}", "run")


def _form(
    name: str,
    query: NamespaceQuery,
    request: Request,
    database: Engine,
    key: Key,
    typed: Mapping[str, str],
    error: MinionError | None = None,
) -> Response:
    agent = agents.get_agent(name, query, database, key)
    with database.connect() as connection:
        schema = _schema(connection, agent, key)
    return render(
        request,
        "try.html",
        200 if error is None else error.status,
        namespace=agent["namespace"],
        agent=agent,
        fields=fields_of(schema, {}, typed),
        schema=schema,
        takes_message=_takes_message(agent, schema),
        needs_tenant=key.scope.tenant is not None and key.scope.tenant.endswith(ANY),
        budget=BUDGET,
        typed=typed,
        problem=error and error.message,
    )


def _asked(name: str, form: Mapping[str, str], query: NamespaceQuery, database: Engine, key: Key) -> dict[str, Any]:
    """Return the request for a task.

    Raises:
        InvalidInput: a field has the wrong type.
        UnknownAgent: the reader reaches no such agent.
    """
    agent = agents.get_agent(name, query, database, key)
    with database.connect() as connection:
        schema = _schema(connection, agent, key)
    asked: dict[str, Any] = {"agent": name, "namespace": agent["namespace"]}
    if _takes_message(agent, schema):
        asked["messages"] = [{"role": "user", "content": form.get("message", "").replace("\r\n", "\n")}]
    elif "input" in form:
        asked["input"] = as_json(form["input"], "The input")
    else:
        asked["input"] = values_of(schema, form)
    limits = {what: as_amount(form[what], f"The limit of {what}") for what in BUDGET if form.get(what, "").strip()}
    if limits:
        # A trial must not wait for a person.
        asked["budget"] = {**limits, "on_breach": "fail"}
    if form.get("tenant"):
        asked["key"] = form["tenant"]
    return asked


def _schema(connection: Connection, agent: Mapping[str, Any], key: Key) -> dict[str, Any] | None:
    values = {"namespace": agent["namespace"], "name": agent["name"], "inherited": TOOLS.permits(key)}
    row = connection.execute(SCHEMA, values).one_or_none()
    if row is None:
        return None
    found: Any = ordered({"input_schema": row.schema}, row.key_order)
    schema: dict[str, Any] = found["input_schema"]
    return schema


def _takes_message(agent: Mapping[str, Any], schema: dict[str, Any] | None) -> bool:
    return agent["type"] == "agent" and schema is None
