"""Unknown addresses: a page for people who are logged in, a problem for programs."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from orchestrator.api import auth
from orchestrator.pages import rendering
from shared.errors import MinionError, NotFound

NO_PAGE = (404, 405)
"""Also an address that only takes a form."""


def handle(app: FastAPI) -> None:
    """Answer requests of browsers for addresses without a page with a page; leave all others to the API."""
    as_problem = app.exception_handlers[HTTPException]

    async def answer(request: Request, error: HTTPException) -> Response:
        if error.status_code in NO_PAGE and await _is_of_a_reader(request):
            missing = f"There is nothing at {request.url.path}. The bar at the top leads to the pages."
            return rendering.of_error(request, NotFound(missing))
        problem: Response = await as_problem(request, error)  # type: ignore[misc]
        return problem

    app.add_exception_handler(HTTPException, answer)  # type: ignore[arg-type]


async def _is_of_a_reader(request: Request) -> bool:
    """Return whether a browser asks that is logged in, and remember its key."""
    if "text/html" not in request.headers.get("accept", ""):
        return False
    try:
        login = await auth.login_of(request, use=False)
    except (MinionError, SQLAlchemyError):
        return False
    if login.key is not None:
        request.state.key = login.key
    return login.key is not None
