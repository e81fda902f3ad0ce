"""The secrets of tools: their names and dates, never their values."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from orchestrator.api.parameters import Namespace
from orchestrator.pages.access import Reading
from orchestrator.pages.forms import show
from orchestrator.pages.rendering import Page
from shared.secret_store import list_secrets

MOST = 200

router = APIRouter(route_class=Page, include_in_schema=False)


@router.get("/secrets")
def show_secrets(query: Namespace, request: Request, database: Reading) -> Response:
    """The secrets of a namespace, by name."""
    with database.connect() as connection:
        secrets = list_secrets(connection, query.namespace, MOST)
    return show(request, "secrets.html", "Secrets", secrets=secrets, namespace=query.namespace, most=MOST)
