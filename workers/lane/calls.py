"""A tool call that the lane hands to a slot of the pool: its request, what the slot does, its reply.

Requests and replies are JSON texts. A slot rebuilds the tool from the agent's version, which is immutable.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any, cast
from uuid import UUID

import structlog
from celery.exceptions import SoftTimeLimitExceeded
from sqlalchemy.exc import DBAPIError

from shared.contracts.strict_json import JsonValue
from shared.database.connections import behind_time_limit, close_engine, persist, reason
from shared.errors import MinionError, ToolError, from_record
from shared.tasks.records import Claimed
from shared.telemetry import report
from workers.factory import load_blueprint
from workers.outcomes import Interrupted, Postponed
from workers.steps import StepResult
from workers.task import ClaimedTask
from workers.tools.approval import ApprovedTool
from workers.tools.place import PlacedTool

log = structlog.get_logger(__name__)

LEFT_OUT = frozenset({"input", "messages", "steps", "stream_key"})
"""Fields of a task that no call needs."""
INTERRUPTED = json.dumps({"interrupted_softly": True})
"""Reply to a call that a soft time limit or a cancellation ended."""
HANDED_BACK = json.dumps({"handed_back": True})
"""Reply to a call that was not begun because the worker stops."""


class SlotLost(BaseException):
    """The slot died during the call, and the task ends as if its own process had died.

    Attributes:
        charged: the call may have been the cause.
        at_limit: the slot was killed at the task's hard time limit.
    """

    def __init__(self, why: str, *, charged: bool, at_limit: bool) -> None:
        super().__init__(why)
        self.why, self.charged, self.at_limit = why, charged, at_limit


def lost(why: str, *, charged: bool = True, at_limit: bool = False) -> str:
    """Return the main process's reply for a slot that died."""
    return json.dumps({"lost": why, "charged": charged, "at_limit": at_limit})


def request(tool: PlacedTool, arguments: JsonValue, task: ClaimedTask, step: int) -> str:
    """Return the request for a call."""
    known = {each.name: getattr(task, each.name) for each in fields(task) if each.name not in LEFT_OUT}
    return json.dumps({"tool": tool.name, "arguments": arguments, "step": step, "task": known}, default=_as_text)


def make(text: str) -> str:
    """Make a call in a slot of the pool. Return the reply; never raises."""
    try:
        return _make(json.loads(text))
    except SoftTimeLimitExceeded:
        close_engine()
        return INTERRUPTED


def _make(asked: dict[str, Any]) -> str:
    task = ClaimedTask.of(
        cast(Claimed, {"input": None, "messages": None, "steps": [], "stream_key": "", **asked["task"]})
    )
    with structlog.contextvars.bound_contextvars(task=str(task.id), claim=task.claim, agent=task.agent_name):
        try:
            tool = _tool(task.agent_version_id, asked["tool"])
            result = tool.perform(asked["arguments"], task, asked["step"])
        except MinionError as error:
            return json.dumps({"error": _record(error)})
        except Interrupted as interrupted:
            return json.dumps({"interrupted": interrupted.error and _record(interrupted.error)})
        except Exception as error:
            if behind_time_limit(error):
                raise SoftTimeLimitExceeded from error
            log.exception("failed_unexpectedly")
            if isinstance(error, DBAPIError):
                return _unexpected(f"The database failed during the task: {reason(error)}.")
            report(error)
            return _unexpected(f"{type(error).__name__} in the minion; its log has the details.")
        return json.dumps({"result": asdict(result)}, default=_as_text)


def _tool(version: UUID, name: str) -> PlacedTool:
    tools = persist(lambda: load_blueprint(version)).tools
    for tool in tools:
        placed = tool.tool if isinstance(tool, ApprovedTool) else tool
        if placed.name == name:
            return cast(PlacedTool, placed)
    raise ToolError(f"The agent's version {version} has no tool {name!r}.")


def _unexpected(said: str) -> str:
    return json.dumps({"error": {"type": "unexpected_error", "message": said, "retryable": True}})


def result(reply: str) -> StepResult:
    """Return the result in a reply.

    Raises:
        MinionError, Interrupted: what the call raised.
        SoftTimeLimitExceeded: the call was interrupted.
        Postponed: the call was not begun.
        SlotLost: the slot died.
    """
    match json.loads(reply):
        case {"result": found}:
            version = found.pop("function_version_id")
            return StepResult(**found, function_version_id=version and UUID(version))
        case {"error": record}:
            raise _error(record)
        case {"interrupted": record}:
            raise Interrupted(record and _error(record))
        case {"handed_back": True}:
            raise Postponed(0.0, "handed_back")
        case {"lost": why, "charged": charged, "at_limit": at_limit}:
            raise SlotLost(why, charged=charged, at_limit=at_limit)
    raise SoftTimeLimitExceeded


def _record(error: MinionError) -> dict[str, Any]:
    return {**error.as_dict(), "retryable": error.retryable}


def _error(record: dict[str, Any]) -> MinionError:
    error = from_record(record)
    error.retryable = record["retryable"]
    return error


def _as_text(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
