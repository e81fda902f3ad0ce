"""The tasks extension (SEP-2663) for the reference server: the package has the hooks, and no implementation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.extension import Extension, MethodBinding, ToolBinding
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolRequestParams, RequestParams, ToolAnnotations

TASKS = "io.modelcontextprotocol/tasks"
CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
IDEMPOTENCY_KEY = "minions/idempotency-key"
BRANCH = {"type": "object", "properties": {"branch": {"type": "string"}}, "required": ["branch"]}


def question(message: str = "Which branch?", schema: Any = None, **more: Any) -> dict[str, Any]:
    """A question to a person."""
    params = {"message": message, "requestedSchema": schema or BRANCH, **more}
    return {"method": "elicitation/create", "params": params}


@dataclass
class Job:
    """A task of the server."""

    id: str
    arguments: dict[str, Any]
    status: str = "working"
    message: str | None = None
    poll_ms: Any = 1
    ttl_ms: Any = None
    requests: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    created_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat())

    def finish(self, text: str = "built", **more: Any) -> None:
        """End it with a result."""
        self.status, self.result = "completed", {"content": [{"type": "text", "text": text}], **more}

    def ask(self, **requests: Any) -> None:
        """Ask a person."""
        self.status, self.requests = "input_required", requests

    def shown(self) -> dict[str, Any]:
        """The task as `tasks/get` returns it."""
        own = {"taskId": self.id, "status": self.status, "createdAt": self.created_at, "ttlMs": self.ttl_ms}
        more = {
            "statusMessage": self.message,
            "pollIntervalMs": self.poll_ms,
            "result": self.result,
            "error": self.error,
        }
        asked = {"inputRequests": self.requests} if self.status == "input_required" else {}
        return {
            **own,
            "lastUpdatedAt": self.created_at,
            **{name: it for name, it in more.items() if it is not None},
            **asked,
        }


class OfTask(RequestParams):
    """Parameters of the extension's methods."""

    task_id: str
    input_responses: dict[str, Any] | None = None


class Jobs(Extension):
    """Tasks for the calls of `build` (idempotent) and `deploy` (unsafe); `confirm` asks before it answers.

    Attributes:
        jobs: by id; a test changes them.
        asked: the methods that were called, with the task's id.
        calls: `_meta` and parameters of each `tools/call` of these tools.
        keys: the task of each idempotency key.
        prepare: called with each task that is created.
    """

    identifier = TASKS

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.keys: dict[str, str] = {}
        self.asked: list[tuple[str, str]] = []
        self.calls: list[dict[str, Any]] = []
        self.prepare: Callable[[Job], None] = lambda job: None
        self.numbers = itertools.count(1)

    @property
    def job(self) -> Job:
        """The only job."""
        [job] = self.jobs.values()
        return job

    def tools(self) -> Sequence[ToolBinding]:
        def build(target: str) -> str:
            """Builds a target."""
            return f"built {target} at once"

        def deploy(target: str) -> str:
            """Deploys a target."""
            return f"deployed {target} at once"

        def confirm(target: str) -> str:
            """Asks first."""
            return f"confirmed {target}"

        idempotent = {"annotations": ToolAnnotations(idempotent_hint=True), "structured_output": False}
        return [
            ToolBinding(build, kwargs=idempotent),
            ToolBinding(deploy, kwargs={"structured_output": False}),
            ToolBinding(confirm, kwargs={"structured_output": False}),
        ]

    def methods(self) -> Sequence[MethodBinding]:
        modern = frozenset({"2026-07-28"})
        handlers = {"tasks/get": self._get, "tasks/update": self._update, "tasks/cancel": self._cancel}
        return [MethodBinding(name, OfTask, handler, modern) for name, handler in handlers.items()]

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        if params.name not in ("build", "deploy", "confirm"):
            return await call_next(ctx)
        meta: dict[str, Any] = dict(ctx.meta or {})
        self.calls.append({"meta": meta, **dict(ctx.params or {})})
        if params.name == "confirm":
            return await self._confirm(dict(ctx.params or {}), ctx, call_next)
        if TASKS not in meta.get(CAPABILITIES, {}).get("extensions", {}):
            return await call_next(ctx)
        key = meta.get(IDEMPOTENCY_KEY, "")
        if key not in self.keys:
            id = f"job-{next(self.numbers)}"
            self.jobs[id] = Job(id, dict(params.arguments or {}))
            self.keys[key] = id
            self.prepare(self.jobs[id])
        return {"resultType": "task", **self.jobs[self.keys[key]].shown()}

    async def _confirm(
        self, params: dict[str, Any], ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        """Ask twice, without keeping anything: the state goes to the client and back."""
        state = params.get("requestState")
        if state is None:
            return {
                "resultType": "input_required",
                "requestState": 'one "é"',
                "inputRequests": {"sure": question("Sure?", SURE)},
            }
        if state == 'one "é"':
            return {"resultType": "input_required", "requestState": "two", "inputRequests": {"branch": question()}}
        return await call_next(ctx)

    def _found(self, ctx: ServerRequestContext[Any, Any], params: OfTask) -> Job:
        self.asked.append((ctx.method, params.task_id))
        if params.task_id not in self.jobs:
            raise MCPError(-32602, "Failed to retrieve task: Task not found")
        return self.jobs[params.task_id]

    async def _get(self, ctx: ServerRequestContext[Any, Any], params: OfTask) -> HandlerResult:
        return self._found(ctx, params).shown()

    async def _update(self, ctx: ServerRequestContext[Any, Any], params: OfTask) -> HandlerResult:
        job = self._found(ctx, params)
        job.answers.update(params.input_responses or {})
        return {}

    async def _cancel(self, ctx: ServerRequestContext[Any, Any], params: OfTask) -> HandlerResult:
        self._found(ctx, params).status = "cancelled"
        return {}


SURE = {"type": "object", "properties": {"sure": {"type": "boolean", "default": True}}}
