"""Errors as MCP clients see them: JSON-RPC errors with the API's text, code and facts."""

from __future__ import annotations

import secrets
from typing import Any

import structlog
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS, INVALID_REQUEST
from pydantic import ValidationError

from minions.errors import Conflict, InvalidInput, MinionsError, NotFound, TooLarge, Unauthorized
from shared.contracts.strict_model import faults_of

log = structlog.get_logger(__name__)

CODES: tuple[tuple[type[MinionsError], int], ...] = (
    (InvalidInput, INVALID_PARAMS),
    (NotFound, INVALID_PARAMS),
    (TooLarge, INVALID_PARAMS),
    (Unauthorized, INVALID_REQUEST),
    (Conflict, INVALID_REQUEST),
)
"""JSON-RPC codes by kind of error; others are internal errors, which clients may repeat."""


def fault_of(error: MinionsError) -> MCPError:
    """Return the JSON-RPC error for an error of the API."""
    code = next((code for kind, code in CODES if isinstance(error, kind)), INTERNAL_ERROR)
    return MCPError(code, error.message, {"code": error.code, **error.detail})


async def with_our_errors(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """Middleware that answers each error with a text of ours, and logs unexpected ones under the id that it names."""
    try:
        return await call_next(ctx)
    except MCPError:
        raise
    except ValidationError as error:  # the package's own text does not name the parameter
        faults = "; ".join(faults_of(error))
        raise MCPError(
            INVALID_PARAMS, f"The parameters are not valid: {faults}.", {"code": InvalidInput.code}
        ) from None
    except MinionsError as error:
        raise fault_of(error) from None
    except Exception as error:
        error_id = secrets.token_hex(8)
        log.error("mcp_request_failed", error_id=error_id, method=ctx.method, exc_info=error)
        text = f"An unexpected error occurred. The log of the server's process has it, with the error_id {error_id}."
        raise MCPError(INTERNAL_ERROR, text, {"code": "internal_error", "error_id": error_id}) from None
