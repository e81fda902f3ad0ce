"""Tools that a person must approve: the task waits without a worker until then."""

from __future__ import annotations

from shared.contracts.strict_json import JsonValue
from workers.journal import Journal
from workers.outcomes import Suspended
from workers.task import ClaimedTask
from workers.tools.base import Tool


class ApprovedTool:
    """Another tool, called with the approved arguments.

    Args:
        tool: the tool to call after the approval.
        timeout: seconds after which the call fails without a decision.
    """

    def __init__(self, tool: Tool, timeout: float | None) -> None:
        self.tool = tool
        self.timeout = timeout
        self.name = tool.name
        self.description = tool.description
        self.input_schema = tool.input_schema
        self.output_schema = tool.output_schema
        self.strict = tool.strict
        self.deferred = tool.deferred
        self.effect = tool.effect
        self.steps = 1 + tool.steps

    def call(self, arguments: JsonValue, task: ClaimedTask, journal: Journal) -> JsonValue | Suspended:
        """Run a step that waits for the decision, then the tool's own."""
        approved = journal.approval(self.name, arguments, self.timeout)
        return approved if isinstance(approved, Suspended) else self.tool.call(approved, task, journal)
