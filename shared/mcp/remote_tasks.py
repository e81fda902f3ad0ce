"""Tasks of a server: the extension `io.modelcontextprotocol/tasks` (SEP-2663), as a client reads it.

A server may answer `tools/call` with its own task (`resultType: task`), which is then polled with `tasks/get`,
gets answers to its questions with `tasks/update`, and is ended by `tasks/cancel`. Each of these names it in `Mcp-Name`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from shared.mcp import questions
from shared.mcp.client import McpClient
from shared.mcp.faults import McpFault, RpcError
from shared.mcp.protocol import INVALID_PARAMS, TASKS
from shared.mcp.questions import Questions
from shared.mcp.transport import Message

CAPABILITIES: dict[str, Any] = {"elicitation": questions.ELICITATION, "extensions": {TASKS: {}}}
"""Capabilities of a client whose calls may wait for a task or a person."""
FASTEST, USUAL, SLOWEST = 0.5, 5.0, 300.0
"""Seconds between polls: the least, those of a server that does not say, the most."""
LONGEST_TTL = 366 * 86_400.0
LONGEST_ID = 1_000
MAX_MESSAGE = 500
STATUSES = ("working", "input_required", "completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class RemoteTask:
    """A task of a server, as it describes it. Times are seconds.

    Attributes:
        message: for people.
        ttl_seconds: since its creation; None: it is kept, or the server does not say.
        questions: in the state `input_required`: those that have no answer yet; None: all have.
        end: JSON text, if it has ended: {end, result, error}. `workers.deferral` reads it.
    """

    id: str
    status: str
    message: str | None
    poll_seconds: float
    ttl_seconds: float | None
    questions: Questions | None = None
    end: str | None = None


def is_task(result: Message) -> bool:
    """Return whether the result of `tools/call` is a task."""
    return result.get("resultType") == "task"


def created(result: Message) -> RemoteTask:
    """Return the task that a server has created for a call. Its state is that of the first poll.

    Raises:
        McpFault: it has no id.
    """
    found = result.get("taskId")
    if not isinstance(found, str) or not 0 < len(found) <= LONGEST_ID:
        raise _fault(f"the id of its task is not a text of 1 to {LONGEST_ID} characters")
    return _task(found, "working", result)


def read(result: Message, id: str, answered: Collection[str] = ()) -> RemoteTask:
    """Return the task that the result of `tasks/get` describes.

    Args:
        id: of the task that was asked for.
        answered: the keys of questions that have been answered.

    Raises:
        McpFault: it cannot be read, or is another task.
    """
    if result.get("taskId") != id:
        raise _fault(f"it was asked about task {id!r}, and answers about {str(result.get('taskId'))[:100]!r}")
    status = result.get("status")
    if status not in STATUSES:
        raise _fault(f"its task {id!r} has the unknown status {str(status)[:50]!r}")
    asked = _questions(result, answered) if status == "input_required" else None
    return _task(id, status, result, asked, _end(result, status))


def poll_seconds(milliseconds: Any) -> float:
    """Return the seconds until the next poll, from `pollIntervalMs`. It is bounded, whatever the server says."""
    number = _number(milliseconds)
    return USUAL if number is None else min(max(number / 1000, FASTEST), SLOWEST)


def ttl_seconds(milliseconds: Any) -> float | None:
    """Return the seconds for which a server keeps a task, from `ttlMs`; None: without a limit."""
    number = _number(milliseconds)
    return None if number is None or number / 1000 > LONGEST_TTL else max(number / 1000, 0.0)


def get(client: McpClient, id: str, answered: Collection[str] = ()) -> RemoteTask:
    """Ask a server about its task.

    Raises:
        McpFault: there is no answer, or none that can be read.
    """
    return read(client.request("tasks/get", {"taskId": id}, name=id), id, answered)


def update(client: McpClient, id: str, responses: Mapping[str, Any]) -> None:
    """Send answers to a task's questions. To send them again does no harm.

    Raises:
        McpFault: the server did not take them.
    """
    client.request("tasks/update", {"taskId": id, "inputResponses": dict(responses)}, name=id)


def cancel(client: McpClient, id: str) -> None:
    """Cancel a server's task that is not needed any more. It may still end in another way.

    Raises:
        McpFault: the server did not take it.
    """
    client.request("tasks/cancel", {"taskId": id}, name=id)


def is_unknown(fault: McpFault) -> bool:
    """Return whether a server has no such task, or no longer has it: this is an error of the parameters."""
    return isinstance(fault, RpcError) and fault.number == INVALID_PARAMS


def lost(why: str) -> str:
    """Return the end of a task of which nothing more will be known."""
    return json.dumps({"end": "lost", "error": {"message": why}})


def _task(id: str, status: str, result: Message, asked: Questions | None = None, end: str | None = None) -> RemoteTask:
    said = result.get("statusMessage")
    message = said[:MAX_MESSAGE] if isinstance(said, str) and said else None
    pause, ttl = poll_seconds(result.get("pollIntervalMs")), ttl_seconds(result.get("ttlMs"))
    return RemoteTask(id, status, message, pause, ttl, asked, end)


def _questions(result: Message, answered: Collection[str]) -> Questions | None:
    """Return the open questions. A server may repeat a question after it was answered, and may see the answer later."""
    requests = result.get("inputRequests")
    if not isinstance(requests, dict) or not requests:
        return questions.read(requests)
    asked = {key: request for key, request in requests.items() if key not in answered}
    return questions.read(asked) if asked else None


def _end(result: Message, status: str) -> str | None:
    if status == "completed":
        if not isinstance(found := result.get("result"), dict):
            raise _fault("its task is completed, and has no result")
        return json.dumps({"end": status, "result": found})
    if status == "failed":
        error = result.get("error")
        return json.dumps({"end": status, "error": error if isinstance(error, dict) else {}})
    return json.dumps({"end": status}) if status == "cancelled" else None


def _number(value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _fault(why: str) -> McpFault:
    return McpFault(why, taken=True)
