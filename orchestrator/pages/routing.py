"""A test of routing: the agent that a message would go to, and by which scores. Nothing is submitted."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from orchestrator.api import routes as api
from orchestrator.api.parameters import Namespace
from orchestrator.pages.access import Form, Reading
from orchestrator.pages.forms import as_body
from orchestrator.pages.rendering import Page, render
from shared.errors import InvalidInput

router = APIRouter(route_class=Page, include_in_schema=False)


@router.get("/routing")
def show_routing(query: Namespace, request: Request) -> Response:
    """The form."""
    return _page(request, query.namespace)


@router.post("/routing")
def test_routing(form: Form, query: Namespace, request: Request, database: Reading) -> Response:
    """Shows where the message of the form would go. The message is not in the address: logs keep those."""
    message = form.get("message", "")
    try:
        route = api.find_route(query, as_body({"message": message}), database)
    except InvalidInput as error:
        return _page(request, query.namespace, error.status, message=message, problem=error.message)
    return _page(request, query.namespace, message=message, route=route)


def _page(request: Request, namespace: str, status: int = 200, **values: Any) -> Response:
    shown = {"message": "", "route": None, "problem": None, **values}
    return render(request, "routing.html", status, namespace=namespace, **shown)
