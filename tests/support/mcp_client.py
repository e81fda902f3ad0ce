"""The reference client of the Model Context Protocol, with the tasks extension, which it does not have itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import httpx2
from mcp import Client
from mcp.client.extension import ClaimContext, ClientExtension, NotificationBinding, ResultClaim
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, Request, RequestParams, Result
from pydantic import BaseModel, ConfigDict

TASKS = "io.modelcontextprotocol/tasks"


class Created(Result):
    """`CreateTaskResult`."""

    model_config = ConfigDict(extra="allow")

    result_type: Literal["task"] = "task"


class AnyResult(Result):
    """A result whose members are not of interest to the package."""

    model_config = ConfigDict(extra="allow")


class AnyParams(RequestParams):
    """Parameters of a method that the package does not know."""

    model_config = ConfigDict(extra="allow")


class AnyRequest(Request[AnyParams, str]):
    """A request with a method that the package does not know."""


class TaskNotice(BaseModel):
    """`notifications/tasks`."""

    model_config = ConfigDict(extra="allow")


class TasksExtension(ClientExtension):
    """Declares the extension, and keeps what arrives."""

    identifier = TASKS

    def __init__(self) -> None:
        self.notices: list[dict[str, Any]] = []

    def claims(self) -> list[ResultClaim[Any]]:
        """Tasks in place of results."""
        return [ResultClaim(result_type="task", model=Created, resolve=_unresolved)]

    def notifications(self) -> list[NotificationBinding[Any]]:
        """States of tasks."""

        async def keep(notice: TaskNotice) -> None:
            self.notices.append(notice.model_dump())

        return [NotificationBinding(method="notifications/tasks", params_type=TaskNotice, handler=keep)]


async def _unresolved(created: Created, context: ClaimContext) -> CallToolResult:
    raise AssertionError("tests ask for the task itself")


async def _name_task(request: httpx2.Request) -> None:
    """Add the header that the extension wants and the package does not know."""
    if request.headers.get("mcp-method", "").startswith("tasks/"):
        request.headers["mcp-name"] = json.loads(request.content)["params"]["taskId"]


@asynccontextmanager
async def mcp_client(url: str, key: str, *, tasks: bool = False, **options: Any) -> AsyncIterator[Client]:
    """A connected client of the server at `URL/mcp`; `mode="legacy"` speaks 2025-11-25."""
    headers = {"Authorization": f"Bearer {key}"}
    hooks = {"request": [_name_task]}
    extensions = [TasksExtension()] if tasks else None
    async with httpx2.AsyncClient(headers=headers, event_hooks=hooks, timeout=60, trust_env=False) as http:
        transport = streamable_http_client(f"{url}/mcp", http_client=http)
        async with Client(transport, extensions=extensions, **options) as client:
            yield client


async def ask(client: Client, method: str, **params: Any) -> dict[str, Any]:
    """Send a request of any method, and return its result."""
    request = AnyRequest(method=method, params=AnyParams.model_validate(params))
    result = await client.session.send_request(request, AnyResult)  # type: ignore[arg-type]
    return result.model_dump(by_alias=True, mode="json")


async def until(client: Client, task_id: str, *statuses: str) -> dict[str, Any]:
    """Poll a task until it has one of these statuses."""
    while True:
        found = await ask(client, "tasks/get", taskId=task_id)
        if found["status"] in statuses:
            return found
        await asyncio.sleep(0.05)
