"""Agents: the list; one agent with its versions, their results and what it uses; and the way back to a version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import Connection, text

from orchestrator.api import agents as api
from orchestrator.api.actors import Actor
from orchestrator.api.auth import Caller
from orchestrator.api.parameters import Database, NamedPage, Namespace, Text, in_namespace
from orchestrator.observe import stats
from orchestrator.observe.stats import By, Question
from orchestrator.pages.access import Form, Reading
from orchestrator.pages.definitions import VERSIONS, Difference, VersionsQuery, difference, text_of
from orchestrator.pages.forms import as_body, as_number, done, given
from orchestrator.pages.relations import MOST_USES, Node, named_in, picture, relations_of
from orchestrator.pages.rendering import Page, raw, render
from orchestrator.pages.rights import AUDIT, ROUTES, RULES, STATS, SUBMIT, TOOLS
from shared.access.actors import Key
from shared.access.roles import Permission

DAYS = 30
"""Of the results of each version."""
# Acts on definitions are few: the index on acts finds them.
ACTIVATIONS = text(
    """
    SELECT act, actor, claimed, at, CAST(COALESCE(after->>'version', '') AS text) AS version FROM audit_log
        WHERE act IN ('definition.create', 'definition.change', 'agent.rollback') AND at >= :since
          AND namespace = :namespace AND target = ANY (ARRAY[:name, 'agent ' || :name])
        ORDER BY id DESC LIMIT 200
    """
)

DONE = {
    "rollback": "This version is active now.",
    "canary": "This version gets that share of new tasks.",
    "status": "The status was changed.",
}

router = APIRouter(route_class=Page, include_in_schema=False)

AgentQuery = Annotated[VersionsQuery, Depends(in_namespace(VersionsQuery))]


@router.get("/agents")
def list_agents(query: NamedPage, request: Request, database: Reading, key: Caller) -> Response:
    """Agents, by name."""
    page = api.list_agents(query, database, key)
    names = [agent["name"] for agent in page.items]
    with database.connect() as connection:
        results = _results(connection, key, query.namespace, names, "agent", timedelta(days=1))
    return render(
        request,
        "agents.html",
        namespace=query.namespace,
        agents=page.items,
        results=results,
        next=page.next,
        is_first=not query.cursor,
        routable=ROUTES.permits(key),
    )


@router.get("/agents/{name}")
def show_agent(name: Text, query: AgentQuery, request: Request, database: Reading, key: Caller) -> Response:
    """One agent."""
    agent = api.get_agent(name, query, database, key)
    namespace = agent["namespace"]
    with database.connect() as connection:
        results = _results(connection, key, namespace, [name], "version", timedelta(days=DAYS))
        found = _difference(connection, agent, query, key)
        uses = _uses(connection, agent, key)
        activations = _activations(connection, agent) if AUDIT.permits(key) else {}
    return render(
        request,
        "agent.html",
        namespace=namespace,
        agent=agent,
        definition=text_of("agent", name, agent["definition"]),
        versions=agent["versions"][:VERSIONS],
        results=results,
        days=DAYS,
        activations=activations,
        difference=found,
        uses=uses,
        picture=picture(uses),
        most_uses=MOST_USES,
        sees_tools=TOOLS.permits(key),
        may_try=SUBMIT.permits(key),
        may_roll_back=RULES["POST /agents/{name}/rollback"].permits(key),
        done=DONE.get(query.done),
    )


@router.get("/agents/{name}/raw")
def show_definition(name: Text, query: Namespace, database: Reading, key: Caller) -> Response:
    """The whole definition of the active version."""
    agent = api.get_agent(name, query, database, key)
    return raw(text_of("agent", name, agent["definition"]))


@router.post("/agents/{name}/rollback")
def roll_back(name: Text, form: Form, query: Namespace, database: Database, actor: Actor) -> Response:
    """Makes another version the active one."""
    version = as_number(form.get("version", ""), "The version", 2**31 - 1)
    api.roll_back(name, query, as_body({"version": version, **given(form, "reason")}), database, actor)
    return done(f"/agents/{quote(name, safe='')}", "rollback", namespace=query.namespace)


@router.post("/agents/{name}/canary")
def set_canary(name: Text, form: Form, query: Namespace, database: Database, actor: Actor) -> Response:
    """Gives a version a share of new tasks."""
    version = as_number(form.get("version", ""), "The version", 2**31 - 1)
    api.set_canary(name, query, as_body({"version": version, **given(form, "share", "reason")}), database, actor)
    return done(f"/agents/{quote(name, safe='')}", "canary", namespace=query.namespace)


@router.post("/agents/{name}/status")
def set_status(name: Text, form: Form, query: Namespace, database: Database, actor: Actor) -> Response:
    """Disables the agent, or lets it accept tasks again."""
    api.set_status(name, query, as_body(given(form, "status", "reason")), database, actor)
    return done(f"/agents/{quote(name, safe='')}", "status", namespace=query.namespace)


def _results(
    connection: Connection, key: Key, namespace: str, agents: Sequence[str], by: By, last: timedelta
) -> dict[Any, dict[str, Any]]:
    """Return the results of agents that the reader reaches, by agent or by version, from the statistics."""
    if not agents or not STATS.permits(key):
        return {}
    now = datetime.now(UTC)
    filters = {"namespace": namespace, **key.scope.conditions, "only_agents": agents}
    found = stats.answer(connection, Question(since=now - last, until=now, by=(by,), filters=filters), limit=1000)
    return {item[by]: item for item in found["items"]}


def _difference(connection: Connection, agent: dict[str, Any], query: VersionsQuery, key: Key) -> Difference | None:
    if query.a is None:
        return None
    a, b = query.a, query.b or agent["version"]
    before, after = (text_of("agent", agent["name"], api.definition_of(connection, agent, n, key)) for n in (a, b))
    return difference(a, before, b, after)


def _uses(connection: Connection, agent: dict[str, Any], key: Key) -> Node:
    """Return what the agent uses; what that uses in turn, only if the reader may see all tools of the namespace."""
    if TOOLS.permits(key):
        return relations_of(connection, agent["namespace"], agent["name"])
    return named_in(agent["name"], agent["definition"] if key.may(Permission.DEFINITIONS_READ) else {})


def _activations(connection: Connection, agent: Mapping[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """Return who made each version the active one, and when, as the audit log has it."""
    since = agent["versions"][:VERSIONS][-1]["created_at"] - timedelta(minutes=1)
    values = {"namespace": agent["namespace"], "name": agent["name"], "since": since}
    found: dict[int, list[dict[str, Any]]] = {}
    for row in connection.execute(ACTIVATIONS, values).mappings():
        if row["version"].isdecimal():
            found.setdefault(int(row["version"]), []).append(dict(row))
    return found
