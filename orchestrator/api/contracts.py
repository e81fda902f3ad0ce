"""Contracts of agents over HTTP: what a caller needs to call each one, on one page for many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from sqlalchemy import RowMapping, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, TEXT

from orchestrator.api import problems
from orchestrator.api.auth import Caller
from orchestrator.api.parameters import ItemPage, NamedPage, Namespace, Statements, Text
from shared.contracts.documents import content_in_order
from shared.errors import UnknownAgent
from shared.tasks.queries import Page, page_of

# The effect of an agent is the worst of its tools; sub-tasks may do anything. The schemas are its own, or those of the
# tool or function that it runs.
FIND = """
    SELECT a.name, v.number AS version, COALESCE(NULLIF(v.description, ''), tool.description, code.description, '')
               AS description,
           v.definition, v.key_order, tool.definition AS tool, tool.key_order AS tool_order,
           code.definition AS code, code.key_order AS code_order,
           CASE WHEN EXISTS (SELECT 1 FROM relations r WHERE r.agent_version_id = v.id) THEN '{unsafe}'
                ELSE ARRAY(SELECT t.effect FROM agent_version_tools l JOIN tool_versions t ON t.id = l.tool_version_id
                               WHERE l.agent_version_id = v.id)
                     || COALESCE(tool.effect, 'pure') END AS effects
        FROM agents a JOIN agent_versions v ON v.id = a.active_version_id
        LEFT JOIN tool_versions tool ON tool.id = v.tool_version_id
        LEFT JOIN function_versions code ON code.id = COALESCE(v.function_version_id, tool.function_version_id)
        WHERE a.namespace = :namespace AND a.status IN ('active', 'rolled_back')
          AND COALESCE(NULLIF(v.input_schema, 'null'), NULLIF(tool.definition->'input_schema', 'null'),
                       NULLIF(code.definition->'input_schema', 'null')) IS NOT NULL
          AND (:agents = '{}' OR a.name = ANY(:agents)) AND (:capabilities = '{}' OR v.capabilities && :capabilities)
"""
BOUND = (bindparam("agents", type_=ARRAY(TEXT)), bindparam("capabilities", type_=ARRAY(TEXT)))
LIST = text(f"{FIND} AND a.name > :after ORDER BY a.name LIMIT :most").bindparams(*BOUND)
GET = text(f"{FIND} AND a.name = :name").bindparams(*BOUND)
WORST_FIRST = ("unsafe", "idempotent", "pure")

router = APIRouter(prefix="/v1/contracts", tags=["agents"])


class Contract(BaseModel):
    """The contract of an agent's active version, for its callers."""

    name: str
    version: int
    description: str
    input_schema: dict[str, Any] = Field(description="JSON Schema of the input.")
    output_schema: dict[str, Any] | None = Field(description="JSON Schema of the output; null: it may be any JSON.")
    effect: Literal["pure", "idempotent", "unsafe"] = Field(
        description="The worst effect of its tools on the world. An agent with sub-tasks counts as unsafe."
    )


@router.get("", response_model=ItemPage[Contract])
def list_contracts(query: NamedPage, database: Statements, key: Caller) -> Page:
    """The contracts of all agents that have an input schema and are neither deprecated nor disabled, by name."""
    values = _reached(query.namespace, key) | {"after": query.cursor, "most": query.limit + 1}
    with database.connect() as connection:
        page = page_of(connection.execute(LIST, values).mappings().all(), query.limit, "name")
    return Page([_contract(row) for row in page.items], page.next)


@router.get("/{name}", response_model=Contract, responses=problems.documented(404))
def get_contract(name: Text, query: Namespace, database: Statements, key: Caller) -> dict[str, Any]:
    """The contract of one agent that has an input schema."""
    values = _reached(query.namespace, key) | {"name": name}
    with database.connect() as connection:
        row = connection.execute(GET, values).mappings().one_or_none()
    if row is None:
        raise UnknownAgent(
            f"There is no active agent named {name!r} with an input schema. `GET /v1/contracts` lists them."
        )
    return _contract(row)


def _reached(namespace: str, key: Caller) -> dict[str, Any]:
    scope = key.scope
    return {"namespace": namespace, "agents": list(scope.agents), "capabilities": list(scope.capabilities)}


def _contract(row: RowMapping | dict[str, Any]) -> dict[str, Any]:
    definitions = [
        content_in_order(row[which], row[order])
        for which, order in (("definition", "key_order"), ("tool", "tool_order"), ("code", "code_order"))
        if row[which] is not None
    ]
    return {
        "name": row["name"],
        "version": row["version"],
        "description": row["description"],
        "input_schema": _first(definitions, "input_schema"),
        "output_schema": _first(definitions, "output_schema"),
        "effect": next(effect for effect in WORST_FIRST if effect in row["effects"]),
    }


def _first(definitions: Sequence[dict[str, Any]], schema: str) -> dict[str, Any] | None:
    return next((found for each in definitions if (found := each.get(schema)) is not None), None)
