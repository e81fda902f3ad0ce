"""Calls of agents: submitted as tasks, answered at once if they end at once, and never lost with a connection."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

from mcp.server.context import HandlerResult, ServerRequestContext
from mcp_types import CallToolRequestParams, CallToolResult, InputRequiredResult

from minions.aio.task import AsyncTask
from minions.errors import InvalidInput
from orchestrator.mcp import tasks
from orchestrator.mcp.agent_tools import input_of
from orchestrator.mcp.callers import Caller, idempotency_key, traceparent
from orchestrator.mcp.forms import same_decision
from orchestrator.mcp.results import TASK_KEY, result_of, text_of

ANSWER_SECONDS = 2.0
"""A task that ends within them is answered with its result, to every client."""
PROGRESS_SECONDS = 5.0
PATIENCE_SECONDS = 45.0
"""For clients without the tasks extension: most end a call after a minute without a sign of life."""
LONG_PATIENCE_SECONDS = 240.0
"""For those that ask for progress, which they take as a sign of life."""
LARGE_BYTES = 64 * 1024
"""From this size on, the body of a request takes up the API's memory until it is answered: `orchestrator.api.body`."""


class Calls:
    """Answers calls of agents.

    Args:
        is_closing: returns whether the process stops: calls that wait are then answered at once.
        answer_seconds: seconds in which a task must end to be answered with its result.
        progress_seconds: the interval of reports of progress.
    """

    def __init__(
        self,
        is_closing: Callable[[], bool],
        answer_seconds: float = ANSWER_SECONDS,
        progress_seconds: float = PROGRESS_SECONDS,
    ) -> None:
        self._is_closing = is_closing
        self._answer_seconds = answer_seconds
        self._progress_seconds = progress_seconds

    async def call(
        self, context: ServerRequestContext, caller: Caller, params: CallToolRequestParams, agent: str
    ) -> HandlerResult:
        """Submit a task for an agent, or continue the call that a client's answers belong to.

        Raises:
            MinionsError: the API refused it, but for input that the agent does not take: a model can correct that.
        """
        answered: dict[str, Any] = {}
        if params.request_state is not None:
            task = await tasks.find(caller, params.request_state)
            if task.agent != agent:
                raise InvalidInput(f"`requestState` is that of a call of another tool than {params.name[:200]!r}.")
            answered = params.input_responses or {}
            await tasks.update(caller, task, answered)
            task = await tasks.find(caller, task.id, wait=self._answer_seconds)
        else:
            contract = await caller.api.contract(agent, caller.api.namespace)
            try:
                task = await caller.api.call(
                    agent,
                    input_of(contract, params.arguments or {}),
                    idempotency_key=idempotency_key(context),
                    traceparent=traceparent(context),
                    wait=self._answer_seconds,
                )
            except InvalidInput as error:
                return CallToolResult(content=[text_of(error.message)], is_error=True)
        if task.final:
            return result_of(task, any_json=caller.is_modern)
        if caller.has_tasks:
            return await tasks.created(caller, task)
        return await self._wait(context, caller, task, _patience(context, params), answered)

    async def _wait(
        self,
        context: ServerRequestContext,
        caller: Caller,
        task: AsyncTask,
        patience: float,
        answered: Iterable[str],
    ) -> HandlerResult:
        """Report progress until the task ends, needs its caller, or the client's patience ends.

        Args:
            answered: the keys of the forms that the client has answered: no user is asked twice for one decision.
        """
        end = time.monotonic() + patience
        reports = 0
        while True:
            requests = await tasks.input_requests(caller, task)
            is_left_open = any(same_decision(key, asked) for key in answered for asked in requests)
            if requests and not is_left_open:
                return InputRequiredResult(input_requests=dict(requests), request_state=task.id)
            why = await caller.api.sentence(task.id)
            left = end - time.monotonic()
            if is_left_open or left <= 0 or self._is_closing():
                return _handle(task, why)
            await context.session.report_progress(reports, message=why)
            reports += 1
            task = await _next_look(caller, task, min(left, self._progress_seconds))
            if task.final:
                return result_of(task, any_json=caller.is_modern)


def _patience(context: ServerRequestContext, params: CallToolRequestParams) -> float:
    """Return the seconds for which a call may wait."""
    if context.request is not None and len(json.dumps(params.arguments)) > LARGE_BYTES:
        return 0.0
    return LONG_PATIENCE_SECONDS if "progress_token" in (context.meta or {}) else PATIENCE_SECONDS


async def _next_look(caller: Caller, task: AsyncTask, seconds: float) -> AsyncTask:
    """Return a task when it has ended, or after these seconds. A process that stops answers waits at once."""
    before = time.monotonic()
    found = await tasks.find(caller, task.id, wait=seconds)
    if not found.final and time.monotonic() - before < seconds / 2:
        await asyncio.sleep(min(0.2, seconds))
    return found


def _handle(task: AsyncTask, why: str) -> CallToolResult:
    facts = {"task_id": task.id, "state": task.state, "why": why}
    text = (
        f"The call continues as task {task.id}: {why} Call the tool `get_task` with this id for its result. "
        "Do not repeat the call: that would be another task."
    )
    return CallToolResult(content=[text_of(text)], structured_content=facts, _meta={TASK_KEY: task.id})
