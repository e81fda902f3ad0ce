"""Functions: the list; one function with its source, versions, security events and users; and its quarantine."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import Connection, text

from orchestrator.api import functions as api
from orchestrator.api.actors import Actor
from orchestrator.api.auth import Caller
from orchestrator.api.parameters import Database, NamedPage, Namespace, Text, in_namespace
from orchestrator.pages.access import Form, Reading
from orchestrator.pages.definitions import VERSIONS, VersionsQuery, difference, text_of
from orchestrator.pages.formats import LONGEST_TEXT
from orchestrator.pages.forms import as_body, as_number, done, given
from orchestrator.pages.rendering import Page, raw, render
from orchestrator.pages.rights import RULES, SUBMIT
from orchestrator.pages.source import marked

SCHEMAS = {"input_schema": "Arguments", "output_schema": "Value"}
MOST_USERS = 50
# The namespace's agents and tools are read by their names: few, and each has one active version.
TOOLS = text(
    """
    SELECT t.name FROM tools t JOIN tool_versions v ON v.id = t.active_version_id
        JOIN function_versions f ON f.id = v.function_version_id
        WHERE t.namespace = :namespace AND f.function_id = :function ORDER BY t.name LIMIT :most
    """
)
AGENTS = text(
    """
    SELECT a.name FROM agents a JOIN agent_versions v ON v.id = a.active_version_id
        LEFT JOIN tool_versions t ON t.id = v.tool_version_id
        JOIN function_versions f ON f.id = COALESCE(v.function_version_id, t.function_version_id)
        WHERE a.namespace = :namespace AND f.function_id = :function ORDER BY a.name LIMIT :most
    """
)

DONE = {"status": "The status was changed."}

router = APIRouter(route_class=Page, include_in_schema=False)

FunctionQuery = Annotated[VersionsQuery, Depends(in_namespace(VersionsQuery))]


@router.get("/functions")
def list_functions(query: NamedPage, request: Request, database: Reading) -> Response:
    """Functions, by name."""
    page = api.list_functions(query, database)
    return render(
        request,
        "functions.html",
        namespace=query.namespace,
        functions=page.items,
        next=page.next,
        is_first=not query.cursor,
    )


@router.get("/functions/{name}")
def show_function(name: Text, query: FunctionQuery, request: Request, database: Reading, key: Caller) -> Response:
    """One function."""
    function = api.get_function(name, query, database)
    events = api.SecurityEvents.model_validate(api.list_events(name, query, database)).model_dump()["items"]
    definition, code = function["definition"], _code(function)
    with database.connect() as connection:
        found = None
        if query.a is not None:
            a, b = query.a, query.b or function["version"]
            found = difference(a, _text(connection, function, a), b, _text(connection, function, b))
        users = {"namespace": function["namespace"], "function": function["id"], "most": MOST_USERS}
        tools, agents = (connection.scalars(statement, users).all() for statement in (TOOLS, AGENTS))
    return render(
        request,
        "function.html",
        namespace=function["namespace"],
        function=function,
        active=next(version for version in function["versions"] if version["number"] == function["version"]),
        config=definition.get("config") or {},
        schemas=[(title, definition[field]) for field, title in SCHEMAS.items() if definition.get(field)],
        source=marked(code),
        is_cut=len(code) > LONGEST_TEXT,
        versions=function["versions"][:VERSIONS],
        difference=found,
        events=events,
        tools=tools,
        agents=agents,
        may_try=SUBMIT.permits(key),
        may_change=RULES["POST /functions/{name}/status"].permits(key),
        done=DONE.get(query.done),
    )


@router.get("/functions/{name}/raw")
def show_source(name: Text, query: Namespace, database: Reading) -> Response:
    """The whole source of the active version."""
    return raw(_code(api.get_function(name, query, database)))


@router.post("/functions/{name}/status")
def set_status(name: Text, form: Form, query: Namespace, database: Database, actor: Actor) -> Response:
    """Deprecates, quarantines or releases a version."""
    version = as_number(form.get("version", ""), "The version", 2**31 - 1)
    asked = {"version": version, **given(form, "status", "reason")}
    api.set_status(name, query, as_body(asked), database, actor)
    return done(f"/functions/{quote(name, safe='')}", "status", namespace=query.namespace)


def _code(function: dict[str, Any]) -> str:
    """Return the source; empty if the row was changed from outside and has none."""
    return str(function["definition"].get("code", ""))


def _text(connection: Connection, function: dict[str, Any], number: int) -> str:
    return text_of("function", function["name"], api.definition_of(connection, function, number))
