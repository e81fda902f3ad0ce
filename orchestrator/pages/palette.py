"""Where the command palette leads: pages and agents, as a list that also works without scripts."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import Engine

from orchestrator.api import agents as api
from orchestrator.api.auth import Caller
from orchestrator.api.parameters import NamedPageQuery
from orchestrator.api.rights import RULES
from orchestrator.pages.access import Reading
from orchestrator.pages.navigation import MAIN, MORE, reachable
from orchestrator.pages.rendering import Page, render
from shared.access.actors import Key
from shared.access.scope import DEFAULT_NAMESPACE

MOST_AGENTS = 500

router = APIRouter(route_class=Page, include_in_schema=False)


@router.get("/palette")
def show_palette(request: Request, database: Reading, key: Caller) -> Response:
    """Everything that the palette offers before something is typed."""
    return render(
        request,
        "palette.html",
        targets=reachable((*MAIN, *MORE), key),
        agents=agents_of(database, key, MOST_AGENTS),
        namespace=_namespace_of(key),
    )


def agents_of(database: Engine, key: Key, most: int) -> list[dict[str, Any]]:
    """Return agents by name that a key may know: `name` and `capabilities` of each."""
    if not RULES["GET /v1/agents"].permits(key):
        return []
    return api.list_agents(NamedPageQuery(namespace=_namespace_of(key), limit=most), database, key).items


def _namespace_of(key: Key) -> str:
    return key.scope.namespace or DEFAULT_NAMESPACE
