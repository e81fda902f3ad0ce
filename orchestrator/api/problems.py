"""Errors as problem details (RFC 9457), with the same text as on the command line and in a task's record."""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from orchestrator.api.addresses import address_of, network_of
from shared.database.connections import is_transient, reason
from shared.errors import Forbidden, InvalidInput, MinionError, Unauthorized, Unavailable, requirement

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = "2"
STATEMENT_TIMEOUT = "57014"
Handler = Callable[[Request, Any], Awaitable[Response]]


class Problem(BaseModel):
    """An error (RFC 9457). Some problems have more members, such as `violations`, `faults` or `index`."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["/problems/unknown_agent"])
    title: str = Field(examples=["No agent of that name accepts work"])
    status: int = Field(examples=[404])
    detail: str = Field(description="What was wrong and what to do now.")
    code: str = Field(description="The last part of `type`, for programs.", examples=["unknown_agent"])


class ProblemResponse(JSONResponse):
    """A problem as JSON. It is ASCII, so that no text from a caller can make encoding fail."""

    media_type = MEDIA_TYPE

    def render(self, content: Any) -> bytes:
        """Encode the body."""
        return json.dumps(content, allow_nan=False, default=str).encode()


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of problems with these statuses; the schema comes from `add_schema`."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def add_schema(document: dict[str, Any]) -> dict[str, Any]:
    """Add the problem's schema to an OpenAPI document."""
    document.setdefault("components", {}).setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
    return document


def handle(app: FastAPI) -> None:
    """Turn every error of the app into a problem."""
    handlers: dict[Any, Handler] = {
        MinionError: _expected,
        RequestValidationError: _wrong_parameters,
        HTTPException: _http,
        SQLAlchemyError: _database,
        ClientDisconnect: _gone,
        Exception: _unexpected,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def of(error: MinionError, *, with_key: bool = False) -> ProblemResponse:
    """Convert an expected error to a response.

    Args:
        with_key: the request presented a key.
    """
    headers = {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = _challenge(error, with_key)
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(error.detail.get("retry_after", RETRY_AFTER_SECONDS))
    title = (type(error).__doc__ or "").partition("\n")[0].rstrip(".")
    return _problem(error.code, title, error.status, error.message, error.detail, headers)


def _challenge(error: Unauthorized, with_key: bool) -> str:
    """Return the challenge of RFC 6750, with the metadata of RFC 9728 if the error names them."""
    facts = {}
    if isinstance(error, Forbidden):
        facts = {"error": "insufficient_scope", "scope": error.detail.get("permission")}
    elif with_key:
        facts = {"error": "invalid_token"}
    facts["resource_metadata"] = error.detail.get("resource_metadata")
    written = [f'{name}="{value}"' for name, value in facts.items() if value]
    return " ".join(("Bearer", ", ".join(written))).rstrip()


def timed_out(seconds: float) -> ProblemResponse:
    """Return the response to an incomplete request that timed out."""
    phrase = HTTPStatus.REQUEST_TIMEOUT.phrase
    detail = f"The request was not complete after {seconds:g} s. Send its headers and its body without long pauses."
    return _problem("request_timeout", phrase, HTTPStatus.REQUEST_TIMEOUT, detail, {}, None)


def unreadable(*, too_large: bool) -> ProblemResponse:
    """Return the response to a request that is not HTTP, or whose headers are too large."""
    if too_large:
        status, code = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large"
        detail = "The request's headers are too large: they must have at most 64 KB together."
    else:
        status, code = HTTPStatus.BAD_REQUEST, "bad_request"
        detail = "The request is not valid HTTP/1.1."
    return _problem(code, status.phrase, status, detail, {}, None)


def _problem(
    code: str, title: str, status: int, detail: str, members: Mapping[str, Any], headers: Mapping[str, str] | None
) -> ProblemResponse:
    standard = {"type": f"/problems/{code}", "title": title, "status": status, "detail": detail, "code": code}
    return ProblemResponse({**members, **standard}, status, dict(headers or {}))


async def _expected(request: Request, error: MinionError) -> Response:
    if isinstance(error, Unauthorized):
        count_refusal(request, error)
    return of(error, with_key=bool(request.headers.get("authorization")))


def count_refusal(request: Request, error: Unauthorized) -> None:
    """Count refused access for the audit log."""
    known = getattr(request.state, "key", None) or getattr(request.state, "refused_key", None)
    request.app.state.refusals.count(known, network_of(address_of(request)) or None, error)


async def _wrong_parameters(request: Request, error: RequestValidationError) -> Response:
    """Handle faults in the path and the query: those of a body are found in `body.py` and
    `shared.contracts.documents`.
    """
    found = [(fault["loc"], requirement(fault["msg"])) for fault in error.errors()]
    faults = [{"path": ".".join(map(str, place)), "message": message} for place, message in found]
    # Callers know a parameter by its name: `state` instead of `query.state.0`.
    listed = "; ".join(f"{place[:2][-1]}: {message}" for place, message in found)
    return of(InvalidInput(f"The request is not valid: {listed}.", faults=faults))


async def _http(request: Request, error: HTTPException) -> Response:
    """Handle refusals by the framework: an unknown route, or a method that it does not support."""
    phrase = HTTPStatus(error.status_code).phrase
    texts = {
        404: f"There is nothing at {request.url.path}. /docs describes what there is.",
        405: f"{request.url.path} does not take {request.method}. /docs describes what it takes.",
    }
    detail = texts.get(error.status_code, str(error.detail)) if error.detail == phrase else str(error.detail)
    headers = _allow(request) or error.headers if error.status_code == 405 else error.headers
    return _problem(phrase.lower().replace(" ", "_"), phrase, error.status_code, detail, {}, headers)


def _allow(request: Request) -> dict[str, str]:
    """Return the methods of all routes of this path; the framework names those of the first one only."""
    matching = [route for route in request.app.state.routes if route.matches(request.scope)[0] is not Match.NONE]
    methods = {method for route in matching for method in route.methods}
    return {"Allow": ", ".join(sorted(methods))} if methods else {}


async def _database(request: Request, error: SQLAlchemyError) -> Response:
    """Ask to retry if the database is unavailable or too busy. Any other error is unexpected."""
    if not is_unavailable(request, error):
        return await _unexpected(request, error)
    if isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) == STATEMENT_TIMEOUT:
        return of(Unavailable("The database took too long to answer. Ask for less: filter by agent, state or root_id."))
    return of(
        Unavailable(
            "The database cannot be reached at the moment. Try again; "
            "submitting again under the same idempotency key is safe."
        )
    )


def is_unavailable(request: Request, error: SQLAlchemyError) -> bool:
    """Return whether the database is unavailable or too busy, which is logged."""
    if not isinstance(error, PoolTimeout) and not is_transient(error):
        return False
    log.warning("database_unavailable", method=request.method, path=request.url.path, reason=reason(error))
    return True


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    """Handle a caller that disconnected before the end of the body; the response is never read."""
    return Response(status_code=400)


def log_unexpected(request: Request, error: Exception) -> str:
    """Log an unexpected error with its traceback, and return the id that the log has it under."""
    error_id = secrets.token_hex(8)
    log.error("request_failed", error_id=error_id, method=request.method, path=request.url.path, exc_info=error)
    return error_id


async def _unexpected(request: Request, error: Exception) -> Response:
    error_id = log_unexpected(request, error)
    text = f"An unexpected error occurred. The log of the API's process has the details, with the error_id {error_id}."
    return _problem("internal_error", "Internal error", 500, text, {"error_id": error_id}, None)
