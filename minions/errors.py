"""Errors between a caller and the API: one class for each kind, with the API's message as the text.

The server's errors, `shared.errors`, build on these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class MinionsError(Exception):
    """The root of all errors that Minions raises on purpose.

    Attributes:
        code: stable machine-readable name, such as `unknown_agent`.
        message: the problem and what to do about it, for people.
        status: the HTTP status, None if there was no response.
        detail: further facts, such as `violations`, `faults` or `index`.
    """

    code: str = "error"
    status: int | None = None

    def __init__(self, message: str, *, code: str | None = None, status: int | None = None, **detail: Any) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.code
        self.status = status or self.status
        self.detail = detail


class InvalidInput(MinionsError):
    """The request breaks a rule: not strict JSON, an unknown field, or not what the agent's schema allows."""

    code = "invalid_input"

    @property
    def violations(self) -> list[dict[str, str]]:
        """Violations of the agent's schema: each `{"path", "message"}`."""
        found: list[dict[str, str]] = self.detail.get("violations", [])
        return found


class AmbiguousRoute(InvalidInput):
    """Several agents fit equally well, or none does; the message lists the candidates."""

    code = "ambiguous_route"


class AmbiguousId(InvalidInput):
    """The first characters of an id that name more than one task; the message lists them."""

    code = "ambiguous_id"


class ForbiddenAddress(InvalidInput):
    """The system must not access this address: it is not public."""

    code = "forbidden_address"


class InvalidDefinition(MinionsError):
    """An agent, tool or function definition is wrong; the message names the place."""

    code = "invalid_definition"


class TooLarge(MinionsError):
    """More bytes than a limit allows."""

    code = "too_large"


class Unauthorized(MinionsError):
    """No API key, or a wrong one."""

    code = "unauthorized"


class Forbidden(Unauthorized):
    """The API key may not do this; `detail` names the missing `permission` and the `roles` that have it."""

    code = "forbidden"


class NotFound(MinionsError):
    """The requested object does not exist."""

    code = "not_found"


class UnknownAgent(NotFound):
    """No agent of that name accepts work."""

    code = "unknown_agent"


class UnknownCapability(NotFound):
    """No agent offers that capability."""

    code = "unknown_capability"


class Conflict(MinionsError):
    """The request contradicts something that is already stored."""

    code = "conflict"


class IdempotencyConflict(Conflict):
    """The idempotency key was used before with another payload."""

    code = "idempotency_conflict"


class InvalidSignature(MinionsError):
    """A request that claims to be a webhook, but is not signed with the secret, or is not recent."""

    code = "invalid_signature"


class Unavailable(MinionsError):
    """The API or its database is still unavailable after the retries."""

    code = "unavailable"


class TooManyRequests(Unavailable):
    """The API key has used up its quota of requests, still after the retries."""

    code = "too_many_requests"


class ServerError(MinionsError):
    """The API failed unexpectedly, or its response is not in the expected form."""

    code = "internal_error"


class NotConfigured(MinionsError):
    """An address or a key is missing; the message names it."""

    code = "not_configured"


class WaitTimeout(MinionsError):
    """The time is up and the task has not ended. It continues; `detail["task"]` is its current state."""

    code = "wait_timeout"


class TaskFailed(MinionsError):
    """The task ended without success; `detail["task"]` contains it."""

    code = "task_failed"


class OutputMismatch(MinionsError):
    """The task succeeded with an output that is not of the type that the caller named; `detail["task"]` contains it."""

    code = "output_mismatch"

    @property
    def violations(self) -> list[dict[str, str]]:
        """Faults of the output: each `{"path", "message"}`."""
        found: list[dict[str, str]] = self.detail.get("violations", [])
        return found


BY_CODE: Mapping[str, type[MinionsError]] = {
    kind.code: kind
    for kind in (
        *(
            InvalidInput,
            AmbiguousRoute,
            AmbiguousId,
            ForbiddenAddress,
            TooLarge,
            Unauthorized,
            Forbidden,
            NotFound,
            UnknownAgent,
            UnknownCapability,
        ),
        *(Conflict, IdempotencyConflict, Unavailable, TooManyRequests, ServerError),
    )
}
BY_STATUS: Mapping[int, type[MinionsError]] = {
    400: InvalidInput,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    415: InvalidInput,
    422: InvalidInput,
    429: TooManyRequests,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}
STANDARD = ("type", "title", "status", "detail", "code")


def from_problem(status: int, problem: Mapping[str, Any]) -> MinionsError:
    """Return the error that a problem document (RFC 9457) describes."""
    code = str(problem.get("code") or "")
    kind = BY_CODE.get(code) or BY_STATUS.get(status) or (ServerError if status >= 500 else MinionsError)
    text = str(problem.get("detail") or problem.get("title") or f"The API answered with status {status}.")
    error = kind(text, code=code, status=status)
    error.detail = {name: value for name, value in problem.items() if name not in STANDARD}
    return error
