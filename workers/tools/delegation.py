"""Tools of kind `agent`: delegation to another agent, as a sub-task on its own capability's queue."""

from __future__ import annotations

from typing import Any

from shared.contracts.documents import ToolDefinition
from shared.contracts.json_schema import validate
from shared.contracts.strict_json import JsonValue
from shared.errors import InvalidInput, ToolError
from workers.journal import Journal
from workers.outcomes import Suspended
from workers.task import ClaimedTask
from workers.tools.blocks import refuse_foreign_files


class AgentTool:
    """Tool that delegates to an agent; the caller is suspended in the meantime."""

    def __init__(self, definition: ToolDefinition) -> None:
        self.agent = str(definition.agent)
        self.name = definition.name
        self.description = definition.description
        self.input_schema: dict[str, Any] | None = definition.input_schema
        self.output_schema: dict[str, Any] | None = definition.output_schema
        self.strict = definition.strict
        self.deferred = definition.defer_loading
        # The other agent's effects are in its own journal.
        self.effect = "pure"
        self.steps = 1

    def call(self, arguments: JsonValue, task: ClaimedTask, journal: Journal) -> JsonValue | Suspended:
        """Create one sub-task, or return its outcome."""
        validate(self.input_schema, arguments, what=f"The input of tool {self.name!r}", error=InvalidInput)
        refuse_foreign_files(arguments, task)
        outcomes = journal.children([(self.agent, arguments)])
        if isinstance(outcomes, Suspended):
            return outcomes
        child = outcomes[0]
        if child.succeeded:
            return child.output
        message = (child.error or {}).get("message") or f"it ended as {child.state}"
        error = ToolError(f"The agent {self.agent!r} failed: {message}", task_id=str(child.task_id))
        error.retryable = False
        raise error
