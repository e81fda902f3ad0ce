"""The MCP server: the requests of the protocol, and what answers each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mcp.server.caching import CacheHint
from mcp.server.context import HandlerResult, ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.lowlevel.server import NotificationOptions
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import MCP_NAME_HEADER, decode_header_value
from mcp_types import (
    HEADER_MISMATCH,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    CallToolRequestParams,
    GetPromptRequestParams,
    GetPromptResult,
    ListPromptsResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    ServerCapabilities,
    SubscriptionsListenRequestParams,
    SubscriptionsListenResult,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from minions.errors import UnknownAgent
from orchestrator.mcp import own_tools, resources, tasks
from orchestrator.mcp.agent_tools import agent_of, tool_of
from orchestrator.mcp.callers import Caller, Connect, Terms
from orchestrator.mcp.calls import Calls
from orchestrator.mcp.faults import with_our_errors
from orchestrator.mcp.subscriptions import Subscriptions
from orchestrator.mcp.tasks import TaskParams, UpdateTaskParams
from shared import __version__
from shared.mcp.protocol import TASKS

INSTRUCTIONS = (
    "Each tool is an agent, and each call is a durable task: it continues if the connection breaks. A call that takes "
    "long answers with the id of its task; `get_task` returns its result. Repeat a call only with the idempotency key "
    "of the first one, in `_meta` as `minions/idempotency-key`: without it, the call is another task."
)
PAGE = 100
MINUTE_MS = 60_000

Context = ServerRequestContext


def build(connect: Connect, is_closing: Callable[[], bool] = lambda: False) -> McpServer:
    """Return the server.

    Args:
        connect: returns the API for the caller of a request.
        is_closing: returns whether the process stops: requests that wait are then answered at once.
    """
    return McpServer(connect, Calls(is_closing), Subscriptions(is_closing))


class McpServer(Server[Any]):
    """The package's server with our handlers."""

    def __init__(self, connect: Connect, calls: Calls, subscriptions: Subscriptions) -> None:
        self._connect = connect
        self.calls = calls
        self.subscriptions = subscriptions
        lists = CacheHint(ttl_ms=MINUTE_MS, scope="private")
        super().__init__(
            "minions",
            version=__version__,
            title="Minions",
            instructions=INSTRUCTIONS,
            cache_hints={
                "tools/list": lists,
                "prompts/list": lists,
                "resources/templates/list": lists,
                "server/discover": lists,
            },
            # No argument of an agent is also a header, so there is nothing to compare.
            get_tool_input_schema=lambda name: None,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,  # type: ignore[arg-type]  # it may return a task too
            on_list_resources=self._list_resources,
            on_list_resource_templates=self._list_templates,
            on_read_resource=self._read_resource,
            on_list_prompts=self._list_prompts,
            on_get_prompt=self._get_prompt,
            on_subscriptions_listen=self._listen,
        )
        # The package's own middleware makes spans with an SDK; ours are made from committed rows.
        self.middleware = [with_our_errors]
        self.add_request_handler("tasks/get", TaskParams, self._get_task)
        self.add_request_handler("tasks/update", UpdateTaskParams, self._update_task)
        self.add_request_handler("tasks/cancel", TaskParams, self._cancel_task)

    def get_capabilities(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, dict[str, Any]] | None = None,
        extensions: dict[str, dict[str, Any]] | None = None,
        *,
        protocol_version: str | None = None,
    ) -> ServerCapabilities:
        """Return what this server can do in an era of the protocol: only changes of tools are announced, and tasks
        exist in the present era only."""
        modern = protocol_version in MODERN_PROTOCOL_VERSIONS
        found = super().get_capabilities(
            notification_options,
            experimental_capabilities,
            {TASKS: {}} if modern else {},
            protocol_version=protocol_version,
        )
        if found.prompts is not None:
            found.prompts.list_changed = False
        if found.resources is not None:
            found.resources.list_changed = found.resources.subscribe = False
        if found.tools is not None:
            found.tools.list_changed = modern
        return found

    def _caller(self, context: Context) -> Caller:
        return Caller.of(context, self._connect)

    async def _list_tools(self, context: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        caller, cursor = self._caller(context), params.cursor if params else None
        page = await caller.api.page("/v1/contracts", cursor=cursor, limit=PAGE, namespace=caller.api.namespace)
        own = [] if cursor else [each.as_tool() for each in own_tools.offered(await Terms.of(caller.api))]
        agents = [
            tool_of(each, taken=own_tools.NAMES, has_tasks=caller.has_tasks, any_json=caller.is_modern)
            for each in page["items"]
        ]
        return ListToolsResult(tools=[*own, *agents], next_cursor=page["next"])

    async def _call_tool(self, context: Context, params: CallToolRequestParams) -> HandlerResult:
        caller = self._caller(context)
        own = own_tools.BY_NAME.get(params.name)
        if own is not None and (await Terms.of(caller.api)).allow(*own.endpoints):
            return await own.call(caller, params.arguments or {})
        try:
            return await self.calls.call(context, caller, params, agent_of(params.name, taken=own_tools.NAMES))
        except UnknownAgent:
            raise _unknown_tool(params.name) from None

    async def _list_resources(self, context: Context, params: PaginatedRequestParams | None) -> ListResourcesResult:
        return await resources.list_resources(self._caller(context), params.cursor if params else None)

    async def _list_templates(
        self, context: Context, params: PaginatedRequestParams | None
    ) -> ListResourceTemplatesResult:
        return resources.list_templates()

    async def _read_resource(self, context: Context, params: ReadResourceRequestParams) -> ReadResourceResult:
        return await resources.read(self._caller(context), str(params.uri))

    async def _list_prompts(self, context: Context, params: PaginatedRequestParams | None) -> ListPromptsResult:
        return await resources.list_prompts(self._caller(context), params.cursor if params else None)

    async def _get_prompt(self, context: Context, params: GetPromptRequestParams) -> GetPromptResult:
        return await resources.get_prompt(self._caller(context), params.name)

    async def _listen(self, context: Context, params: SubscriptionsListenRequestParams) -> SubscriptionsListenResult:
        return await self.subscriptions.listen(context, self._caller(context), params)

    async def _get_task(self, context: Context, params: TaskParams) -> dict[str, Any]:
        caller = self._of_task(context, params)
        return await tasks.detailed(caller, await tasks.find(caller, params.task_id))

    async def _update_task(self, context: Context, params: UpdateTaskParams) -> dict[str, Any]:
        caller = self._of_task(context, params)
        await tasks.update(caller, await tasks.find(caller, params.task_id), params.input_responses)
        return {}

    async def _cancel_task(self, context: Context, params: TaskParams) -> dict[str, Any]:
        caller = self._of_task(context, params)
        task = await tasks.find(caller, params.task_id)
        await caller.api.cancel(task.id, "Cancelled by an MCP client.")
        return {}

    def _of_task(self, context: Context, params: TaskParams) -> Caller:
        """Return the caller of a request of the tasks extension.

        Raises:
            MCPError: the client has not declared the extension, or the headers name another task.
        """
        if context.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            raise MCPError(METHOD_NOT_FOUND, "Method not found", context.method)
        headers = None if context.request is None else context.request.headers
        if headers is not None and decode_header_value(headers.get(MCP_NAME_HEADER)) != params.task_id:
            raise MCPError(HEADER_MISMATCH, "The header Mcp-Name must be the same as the parameter `taskId`.")
        caller = self._caller(context)
        caller.require_tasks()
        return caller


def _unknown_tool(name: str) -> MCPError:
    return MCPError(
        INVALID_PARAMS, f"Unknown tool: {name[:200]!r}. `tools/list` lists them.", {"code": "unknown_agent"}
    )
