"""Streams of changes: of the list of tools, and of tasks. Each is one request of a client, and ends with it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import SUBSCRIPTION_ID_META_KEY
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    Notification,
    NotificationParams,
    SubscriptionFilter,
    SubscriptionsAcknowledgedNotification,
    SubscriptionsAcknowledgedNotificationParams,
    SubscriptionsListenRequestParams,
    SubscriptionsListenResult,
    ToolListChangedNotification,
)

from minions.errors import NotFound
from orchestrator.mcp import tasks
from orchestrator.mcp.callers import Caller
from shared.access.actors import Key

LOOK_SECONDS = 1.0
TOOLS_SECONDS = 5.0
MOST_STREAMS = 200
"""In one process."""
MOST_TASKS = 50
"""Of one stream."""
MOST_WATCHED = 400
"""Tasks of all streams of one process: each costs a look a second, of about a millisecond."""
SHARE = 4
"""One key may use a quarter of the streams, and of the tasks."""

Send = Callable[[Notification[Any, Any]], Awaitable[None]]


class TaskNotification(Notification[NotificationParams, Literal["notifications/tasks"]]):
    """The state of a task, as `tasks/get` returns it."""

    method: Literal["notifications/tasks"] = "notifications/tasks"


class Subscriptions:
    """Serves `subscriptions/listen`.

    Args:
        is_closing: returns whether the process stops: streams then end, and their clients open others.
        tools_seconds: the interval of looks at the list of tools.
    """

    def __init__(self, is_closing: Callable[[], bool], tools_seconds: float = TOOLS_SECONDS) -> None:
        self._is_closing = is_closing
        self._tools_seconds = tools_seconds
        self._open: Counter[str | None] = Counter()
        self._watched: Counter[str | None] = Counter()

    async def listen(
        self, context: ServerRequestContext, caller: Caller, params: SubscriptionsListenRequestParams
    ) -> SubscriptionsListenResult:
        """Serve one stream until the client closes it.

        Raises:
            MCPError: there are too many streams, or tasks, in this process or of this key; or the client has not
                declared the tasks extension.
            MinionsError: the key has become invalid, or the API cannot be reached.
        """
        asked = params.notifications
        wanted = (asked.model_extra or {}).get("taskIds") or []
        if wanted:
            caller.require_tasks()
        if (
            not isinstance(wanted, list)
            or len(wanted) > MOST_TASKS
            or not all(isinstance(each, str) for each in wanted)
        ):
            raise MCPError(INVALID_PARAMS, f"`taskIds` must be a list of at most {MOST_TASKS} ids of tasks.")
        key = _key_of(context)
        _check(self._open, key, 1, most=MOST_STREAMS, noun="streams")
        _check(self._watched, key, len(wanted), most=MOST_WATCHED, noun="tasks in streams")
        self._open[key] += 1
        self._watched[key] += len(wanted)
        try:
            return await self._serve(context, caller, bool(asked.tools_list_changed), wanted)
        finally:
            self._open -= Counter({key: 1})  # and forget a key without streams
            self._watched -= Counter({key: len(wanted)})

    async def _serve(
        self, context: ServerRequestContext, caller: Caller, tools: bool, wanted: list[str]
    ) -> SubscriptionsListenResult:
        meta: dict[str, Any] = {SUBSCRIPTION_ID_META_KEY: context.request_id}

        async def send(notification: Notification[Any, Any]) -> None:
            await context.session.send_notification(notification, related_request_id=context.request_id)  # type: ignore[arg-type]

        known = {task: None for task in wanted if await _is_known(caller, task)}
        watched = _WatchedTasks(caller, meta, known)
        listed = _WatchedTools(caller, meta, self._tools_seconds) if tools else None
        if listed is not None:
            await listed.look()
        honoured = SubscriptionFilter(
            tools_list_changed=True if tools else None, **({"taskIds": list(known)} if known else {})
        )
        acknowledged = SubscriptionsAcknowledgedNotificationParams(notifications=honoured, _meta=meta)
        await send(SubscriptionsAcknowledgedNotification(params=acknowledged))
        while not self._is_closing():
            await watched.report(send)
            if listed is not None:
                await listed.report(send)
            await asyncio.sleep(min(LOOK_SECONDS, self._tools_seconds))
        return SubscriptionsListenResult(_meta=meta)


def _key_of(context: ServerRequestContext) -> str | None:
    """Return the identity of the caller's key; None over standard input and output, where there is only one."""
    if context.request is None:
        return None
    key: Key = context.request.state.key
    return key.identity


def _check(used: Counter[str | None], key: str | None, more: int, *, most: int, noun: str) -> None:
    own = most if key is None else most // SHARE
    if used[key] + more > own:
        full = f"One key may have {own} {noun} in a process, and this one has {used[key]}."
    elif used.total() + more > most:
        full = f"This process may have {most} {noun}, and has {used.total()}."
    else:
        return
    raise MCPError(INTERNAL_ERROR, f"{full} Poll in place of it.")


class _WatchedTasks:
    """The tasks of one stream, with what was reported of each."""

    def __init__(self, caller: Caller, meta: dict[str, Any], known: dict[str, Any]) -> None:
        self._caller = caller
        self._meta = meta
        self._reported = known

    async def report(self, send: Send) -> None:
        """Send the tasks that have changed. Those that have ended are not looked at again."""
        for task_id, before in list(self._reported.items()):
            task = await tasks.find(self._caller, task_id)
            # Not the sentence, which names durations.
            now = (task.state, task.wait_reason, task.updated_at)
            if now != before:
                found = await tasks.detailed(self._caller, task)
                await send(TaskNotification(params=NotificationParams.model_validate({**found, "_meta": self._meta})))
                self._reported[task_id] = now
            if task.final:
                del self._reported[task_id]


class _WatchedTools:
    """The list of tools of one stream: the agents and their versions."""

    def __init__(self, caller: Caller, meta: dict[str, Any], seconds: float) -> None:
        self._caller = caller
        self._meta = meta
        self._seconds = seconds
        self._listed: list[tuple[str, int]] = []
        self._next_look = 0.0

    async def look(self) -> bool:
        """Read the list; return whether it differs from the one before."""
        self._next_look = time.monotonic() + self._seconds
        api = self._caller.api
        listed = [(each["name"], each["version"]) async for each in api.contracts(api.namespace)]
        changed, self._listed = listed != self._listed, listed
        return changed

    async def report(self, send: Send) -> None:
        """Send a change of the list."""
        if time.monotonic() >= self._next_look and await self.look():
            await send(ToolListChangedNotification(params=NotificationParams(_meta=self._meta)))


async def _is_known(caller: Caller, task: str) -> bool:
    try:
        await tasks.find(caller, task)
    except NotFound:
        return False
    return True
