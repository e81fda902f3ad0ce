"""Tool calls that an MCP server finishes later: as its own task, or after a person has answered its questions.

The orchestrator polls the server's tasks (`orchestrator.maintenance.remote_poller`), and a person decides through the
same endpoint as about any approval. The minion begins such a call, repeats a plain one with the answers, and reads the
end of a task.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, cast
from uuid import UUID

from shared.errors import ToolError
from shared.mcp import questions, remote_tasks
from shared.mcp.faults import McpFault
from shared.mcp.remote_tasks import FASTEST
from shared.mcp.transport import Message
from shared.tasks.remote_calls import NewRemoteCall, RemoteCall
from workers.outcomes import Deferred
from workers.steps import DeferredCall, Perform, StepResult

MOST_ROUNDS = 10
"""Results of one call that ask for something, before it fails."""
Send = Callable[[int, Mapping[str, Any]], Message]
"""Sends `tools/call` for a step, with more parameters; returns its result."""
Read = Callable[[Message], StepResult]
"""Returns the result of a step from that of `tools/call`."""
Wrap = Callable[[Perform], Perform]
"""Wraps an effect, for example to keep the files of its result."""


class Deferral:
    """The calls of a tool whose server may finish them later.

    Args:
        server: its name, for people.
        namespace: of its definition.
        server_version: the pinned version of its definition, with which the orchestrator asks it.
        send: raises `MinionError`.
        read: raises `MinionError` for a failed call.
        wrap: applied to whatever returns a result.
    """

    def __init__(self, server: str, namespace: str, server_version: UUID, send: Send, read: Read, wrap: Wrap) -> None:
        self.server = server
        self.namespace = namespace
        self.server_version = server_version
        self.send = send
        self.read = read
        self.wrap = wrap

    def begin(self, step: int) -> StepResult:
        """Make the call.

        Raises:
            Deferred: the server will finish it later.
            MinionError: it failed.
        """
        return self._continued(step, {}, round=0, usage={})

    def later(self) -> DeferredCall:
        """Return what continues the call."""
        return DeferredCall(
            lambda step, call: self.wrap(lambda _: self._read_end(call))(step),
            lambda step, call: self.wrap(lambda number: self._repeat(number, call))(step),
        )

    def _repeat(self, step: int, call: RemoteCall) -> StepResult:
        """Repeat a plain call with a person's answers, and with the server's own state, unchanged."""
        assert call.answer is not None
        assert call.requests is not None
        given = questions.responses(json.loads(call.requests), call.answer["verdict"], call.answer["value"])
        state = {} if call.request_state is None else {"requestState": json.loads(call.request_state)}
        return self._continued(step, {"inputResponses": given, **state}, round=call.round, usage=call.usage or {})

    def _continued(self, step: int, more: Mapping[str, Any], *, round: int, usage: Mapping[str, Any]) -> StepResult:
        """Send the call until its result asks for nothing that this process has."""
        while True:
            result = self.send(step, more)
            if remote_tasks.is_task(result):
                raise self._task(step, result, round, usage)
            if result.get("resultType") != "input_required":
                return _with_usage(self.read(result), usage)
            round += 1
            if round > MOST_ROUNDS:
                raise McpFault(f"it asked for input {MOST_ROUNDS} times, and would again", taken=True)
            state = result.get("requestState")
            if state is not None and not isinstance(state, str):
                raise McpFault("its requestState is not a text", taken=True)
            # Some servers write an empty object or null for none.
            if result.get("inputRequests"):
                raise self._question(step, result, round, usage)
            if state is None:
                raise McpFault("it asks for input, but does not say what for", taken=True)
            more = {"requestState": state}

    def _task(self, step: int, result: Message, round: int, usage: Mapping[str, Any]) -> Deferred:
        task = remote_tasks.created(result)
        call = self._call(
            step, round, task.poll_seconds, remote_id=task.id, message=task.message, ttl_seconds=task.ttl_seconds
        )
        return Deferred(call, {**usage, "remote": {"server": self.server, "task": task.id}})

    def _question(self, step: int, result: Message, round: int, usage: Mapping[str, Any]) -> Deferred:
        asked = questions.read(result["inputRequests"])
        state = result.get("requestState")
        call = self._call(
            step,
            round,
            FASTEST,
            state="input_required",
            requests=json.dumps(asked.requests),
            form=asked.form(),
            proposed=asked.proposed,
            request_state=None if state is None else json.dumps(state),
        )
        return Deferred(call, {**usage, "remote": {"server": self.server}, "asks": f"{round} {asked.mark}"})

    def _call(self, step: int, round: int, poll_seconds: float, **more: Any) -> NewRemoteCall:
        call: NewRemoteCall = {
            "step": step,
            "namespace": self.namespace,
            "server": self.server,
            "server_version_id": str(self.server_version),
            "remote_id": None,
            "state": "working",
            "message": None,
            "requests": None,
            "form": None,
            "proposed": None,
            "request_state": None,
            "round": round,
            "poll_seconds": poll_seconds,
            "ttl_seconds": None,
        }
        return cast(NewRemoteCall, {**call, **more})

    def _read_end(self, call: RemoteCall) -> StepResult:
        """Return the result of a call whose server has finished its task."""
        assert call.result is not None
        end = json.loads(call.result)
        if end["end"] == "completed":
            return _with_usage(self.read(end["result"]), call.usage or {})
        error = end.get("error") or {}
        said = error.get("message")
        why = said[:2_000] if isinstance(said, str) else "it does not say why"
        what = {"failed": "failed", "cancelled": "was cancelled there", "lost": "has no result"}[end["end"]]
        if end["end"] == "cancelled":
            why = call.message or why
        failure = ToolError(f"Task {call.remote_id} of the MCP server {self.server!r} {what}: {why}")
        failure.retryable = False
        raise failure


def _with_usage(result: StepResult, usage: Mapping[str, Any]) -> StepResult:
    """Return a result with what is known about its call: the server's task, and who answered its questions."""
    result.used_besides.update({name: usage[name] for name in ("remote", "answers") if name in usage})
    return result
