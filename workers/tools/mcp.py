"""Tools of kind `mcp`: a call of a tool of an MCP server, as it was listed when a person pulled it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import structlog

from shared.contracts.documents import McpServerDefinition, ToolDefinition
from shared.contracts.json_schema import validate
from shared.contracts.strict_json import JsonValue, digest
from shared.database.connections import persistently
from shared.errors import InvalidInput, MinionError, ToolError
from shared.mcp import remote_tasks
from shared.mcp.eras import Eras
from shared.mcp.faults import McpFault
from shared.mcp.parameters import headers_of
from shared.mcp.protocol import IDEMPOTENCY_KEY, TRACE_KEY
from shared.mcp.results import output_of
from shared.mcp.servers import connect, secrets_of
from shared.mcp.transport import Message
from shared.secret_store import times_of
from workers.deferral import Deferral
from workers.journal import Journal
from workers.outcomes import Deferred, Interrupted, Suspended
from workers.result_cache import ResultCache
from workers.steps import Perform, StepResult
from workers.task import ClaimedTask
from workers.tools.blocks import keeping_files
from workers.tools.trace import traceparent_of

DEFERRING = ("task", "input_required")
"""Types of results of calls that the server finishes later."""
log = structlog.get_logger(__name__)
eras = Eras()
"""Knowledge of this process about servers, by the ids of their versions."""


class McpTool:
    """A call of a remote tool, made as one journal step with the tool's effect."""

    def __init__(
        self,
        definition: ToolDefinition,
        version_id: UUID,
        server: McpServerDefinition,
        server_version_id: UUID,
        namespace: str,
    ) -> None:
        assert definition.mcp is not None
        self.definition = definition
        self.mcp = definition.mcp
        self.server = server
        self.server_version_id = server_version_id
        self.namespace = namespace
        self.cache = definition.cache and ResultCache(version_id, definition.cache, depends_on=self._stored_secrets)
        self.name = definition.name
        self.description = definition.description
        self.input_schema: dict[str, Any] | None = definition.input_schema
        self.strict = definition.strict
        self.deferred = definition.defer_loading
        self.output_schema: dict[str, Any] | None = definition.output_schema
        self.effect = str(definition.effect)
        self.steps = 1

    def call(self, arguments: JsonValue, task: ClaimedTask, journal: Journal) -> JsonValue | Suspended:
        """Make the call as one step, which the server may finish later."""
        request = {"server": self.server.name, "tool": self.mcp.tool, "arguments": arguments}
        # Nothing waits in a trial.
        capabilities = {} if journal.is_trial else remote_tasks.CAPABILITIES

        def send(step: int, more: Mapping[str, Any]) -> Message:
            meta = {IDEMPOTENCY_KEY: digest([str(task.origin_id), step, digest(request)])}
            if parent := traceparent_of(task, step):
                meta[TRACE_KEY] = parent
            return self._request(self._checked(arguments), more, meta, capabilities)

        def read(result: Message) -> StepResult:
            return StepResult(output_of(result, self.definition.output_schema, name=self.name))

        def kept(perform: Perform) -> Perform:
            return keeping_files(self._with_names(perform), task, self.name)

        deferral = Deferral(self.server.name, self.namespace, self.server_version_id, send, read, kept)
        once = self.cache.around(deferral.begin, task, arguments) if self.cache else deferral.begin
        try:
            return journal.call(
                "tool_call", self.name, request, kept(once), effect=self.effect, deferred=deferral.later()
            )
        except Deferred:
            return Suspended()

    def _checked(self, arguments: JsonValue) -> dict[str, Any]:
        """Return the arguments.

        Raises:
            InvalidInput: they do not match the schema, or are no object.
        """
        what = f"The input of tool {self.name!r}"
        validate(self.input_schema, arguments, what=what, error=InvalidInput)
        if not isinstance(arguments, dict):
            raise InvalidInput(f"{what} must be an object.")
        return arguments

    def _with_names(self, perform: Perform) -> Perform:
        """Return an effect whose faults name the tool and the server."""

        def named(step: int) -> StepResult:
            try:
                return perform(step)
            except McpFault as fault:
                raise self._failed(fault) from None

        return named

    def _stored_secrets(self) -> JsonValue:
        """Return the names of the server's secrets, with the times at which they were set."""
        names = secrets_of(self.server)
        return persistently(times_of, names, self.namespace) if names else None

    def _request(
        self, arguments: dict[str, Any], more: Mapping[str, Any], meta: dict[str, str], capabilities: Mapping[str, Any]
    ) -> Message:
        """Return the result of the call, of one of the types that the capabilities permit.

        Raises:
            McpFault: there is none.
            ToolError: the server cannot be asked.
        """
        try:
            with connect(self.server, self.namespace, eras.of(self.server_version_id), capabilities) as client:
                result = client.request(
                    "tools/call",
                    {"name": self.mcp.tool, "arguments": arguments, **more},
                    name=self.mcp.tool,
                    meta=meta,
                    headers=headers_of(self.input_schema, arguments),
                )
        except McpFault:
            raise
        except MinionError as error:
            raise self._failure(error.message, retryable=error.retryable) from None
        kind = result.get("resultType") or "complete"
        if kind != "complete" and not (capabilities and kind in DEFERRING):
            raise McpFault(f"its result is of type {str(kind)[:50]!r}, which is not supported", taken=True)
        return result

    def _failed(self, fault: McpFault) -> Exception:
        """Return the outcome of a call without a result."""
        if fault.written:
            log.warning("mcp_program_failed", server=self.server.name, why=fault.message, standard_error=fault.written)
        if fault.taken is None and fault.temporary and self.effect == "unsafe":
            return Interrupted()
        # An unsafe call that the server may have processed is not repeated.
        again = fault.temporary and (self.effect != "unsafe" or fault.taken is False)
        error = self._failure(fault.message, retryable=again)
        error.detail.update(fault.detail)
        if again and fault.retry_after is not None:
            error.detail["retry_after"] = fault.retry_after
        return error

    def _failure(self, why: str, *, retryable: bool) -> ToolError:
        error = ToolError(f"The tool {self.name!r} (MCP server {self.server.name!r}): {why.rstrip('.')}.")
        error.retryable = retryable
        return error
