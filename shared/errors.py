"""Every error that Minions raises on purpose: one hierarchy, one text.

A `MinionError` says what was wrong, where, and what to do now. The command line prints it, HTTP sends it as
problem details (RFC 9457), and a task's record stores it, with the same words in all three.

The roots are the client's, `minions.errors`: `except minions.errors.NotFound` catches a task that this process did not
find, and one that the API did not find.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from minions import errors as roots
from shared.storable import storable

# Pydantic's "Input should be a valid string", also after the name of an option.
_SHOULD = re.compile(r"(^|: )((?:\w+ ){1,2})should ")


def requirement(message: str) -> str:
    """Return Pydantic's description of a fault as a requirement: "Input must be a valid string"."""
    return _SHOULD.sub(r"\1\2must ", message.replace("Value error, ", "", 1), count=1)


class MinionError(roots.MinionsError):
    """The root of all expected errors of the server.

    Attributes:
        code: stable machine-readable name, the last part of the problem's `type`.
        status: the HTTP status that reports it.
        exit_code: the exit status of the `minion` command (sysexits.h numbers where one fits).
        retryable: whether a task that failed with it may be retried automatically.
        message: what was wrong and what to do now, for people.
        detail: JSON-serialisable facts, for programs.
    """

    code = "internal_error"
    status: int = 500
    exit_code: ClassVar[int] = 70
    retryable: bool = False

    def __init__(self, message: str, /, **detail: Any) -> None:
        # They may quote foreign text, and an error must be recorded whatever it quotes.
        super().__init__(storable(message))
        self.detail = storable(detail)

    def as_dict(self) -> dict[str, Any]:
        """Return the error as stored in a task's record: `{"type", "message", **detail}`."""
        return {"type": self.code, "message": self.message, **self.detail}


def from_record(record: Mapping[str, Any]) -> MinionError:
    """Return the error that a task's or a step's record holds; one of an unknown kind is a tool's."""
    kind = _kinds(MinionError).get(record["type"], ToolError)
    detail = {name: value for name, value in record.items() if name not in ("type", "message", "retryable")}
    return kind(record["message"], **detail)


def _kinds(root: type[MinionError]) -> dict[str, type[MinionError]]:
    found = {root.code: root}
    for kind in root.__subclasses__():
        # A code belongs to the most general class that has it: others may need more than the record holds.
        found = _kinds(kind) | found
    return found


class InvalidInput(MinionError, roots.InvalidInput):
    """The input breaks a rule: not strict JSON, or not what the agent's schema allows."""

    code, status, exit_code = "invalid_input", 422, 65


class ForbiddenAddress(InvalidInput, roots.ForbiddenAddress):
    """An address that must not be reached from here: it is not public."""

    code = "forbidden_address"


class InvalidOutput(MinionError):
    """An agent, a tool or a function returned something its output schema does not allow."""

    code, status, exit_code = "invalid_output", 500, 65


class InvalidDefinition(MinionError, roots.InvalidDefinition):
    """An agent, tool or function definition is wrong; the message names the place."""

    code, status, exit_code = "invalid_definition", 422, 65


class TooLarge(MinionError, roots.TooLarge):
    """More bytes than a limit allows."""

    code, status, exit_code = "too_large", 413, 65


class Unauthorized(MinionError, roots.Unauthorized):
    """No API key, or a wrong one."""

    code, status, exit_code = "unauthorized", 401, 77


class Forbidden(Unauthorized, roots.Forbidden):
    """The API key may not do this."""

    code, status, exit_code = "forbidden", 403, 77


class NotFound(MinionError, roots.NotFound):
    """There is no such thing."""

    code, status, exit_code = "not_found", 404, 66


class UnknownAgent(NotFound, roots.UnknownAgent):
    """No agent of that name accepts work."""

    code = "unknown_agent"


class UnknownCapability(NotFound, roots.UnknownCapability):
    """No agent offers that capability."""

    code = "unknown_capability"


class AmbiguousRoute(InvalidInput, roots.AmbiguousRoute):
    """Several agents fit equally well, or none does; the message lists the candidates."""

    code = "ambiguous_route"


class Conflict(MinionError, roots.Conflict):
    """The request contradicts something that is already stored."""

    code, status, exit_code = "conflict", 409, 65


class IdempotencyConflict(Conflict, roots.IdempotencyConflict):
    """The idempotency key was used before with another payload."""

    code = "idempotency_conflict"


class AmbiguousId(InvalidInput, roots.AmbiguousId):
    """The first characters of an id that name more than one task; the message lists them."""

    code = "ambiguous_id"


class FunctionError(MinionError):
    """A sandboxed function raised, was refused, or went over a limit."""

    code = "function_error"


class ToolError(MinionError):
    """A tool could not do what it was asked."""

    code = "tool_error"
    retryable = True


class SubtaskFailed(MinionError):
    """A sub-task did not succeed; `detail["cause"]` is the first cause, however deep it lies."""

    code = "subtask_failed"


class ModelError(MinionError):
    """The model's API refused a request or could not be reached."""

    code, status = "model_error", 502


class ModelUnavailable(ModelError):
    """The model's API did not answer, or asked to be asked later; nothing is wrong with the request.

    Its detail may contain `retry_after`, the seconds that the API asked for, and `cost_unknown`: the connection was
    lost after the request was sent, so the call may or may not be billed.
    """

    code, status = "model_unavailable", 503
    retryable = True


class BudgetExceeded(MinionError):
    """A budget of the task, or of one above it, has no room for the next step; `detail` has the figures."""

    code = "budget_exceeded"


class HistoryDiverged(MinionError):
    """A task that ran again asked for something else than its journal holds."""

    code = "history_diverged"


class RecordingDiffers(MinionError):
    """A task of a trial asked for something else than its recording holds; `detail` has both requests."""

    code = "recording_differs"


class WouldHaveCalled(MinionError):
    """A task of a trial ended before a call that may have an effect and that was not recorded."""

    code = "would_have_called"


class Unavailable(MinionError, roots.Unavailable):
    """The database, the broker or the API cannot be reached."""

    code, status, exit_code = "unavailable", 503, 69
    retryable = True


class TooManyRequests(Unavailable, roots.TooManyRequests):
    """The API key has used up its quota, or too many attempts from one address failed; `retry_after` is in seconds."""

    code, status = "too_many_requests", 429


class FileFault(MinionError):
    """A file or a folder cannot be read or written."""

    code, exit_code = "file_fault", 74


class TimeLimitExceeded(MinionError):
    """A task ran longer than its agent's time limit allows."""

    code = "time_limit_exceeded"
    retryable = True


class Cancelled(MinionError):
    """The task was cancelled while it ran."""

    code, status = "cancelled", 409


class TaskFailed(MinionError, roots.TaskFailed):
    """A task that the caller waited for did not succeed; `detail["error"]` holds its recorded error."""

    code, exit_code = "task_failed", 1


class WaitTimeout(MinionError, roots.WaitTimeout):
    """A task that the caller waited for has not finished yet. It continues."""

    code, status, exit_code = "wait_timeout", 504, 75


class NotConfigured(MinionError, roots.NotConfigured):
    """A setting is missing or wrong; the message names it."""

    code, status, exit_code = "not_configured", 500, 78
