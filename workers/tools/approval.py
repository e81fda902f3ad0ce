"""Tools that a person has to approve: the task waits without a worker until somebody does."""

from __future__ import annotations

from shared.contracts.strict_json import JsonValue
from workers.journal import Journal
from workers.outcomes import Suspended
from workers.task import ClaimedTask
from workers.tools.base import Tool


class ApprovedTool:
    """Another tool, called with the arguments that somebody has approved.

    Args:
        tool: what is called then.
        timeout: seconds after which the call fails if nobody has answered.
    """

    def __init__(self, tool: Tool, timeout: float | None) -> None:
        self.tool = tool
        self.timeout = timeout
        self.name = tool.name
        self.description = tool.description
        self.input_schema = tool.input_schema
        self.effect = tool.effect
        self.steps = 1 + tool.steps

    def call(self, arguments: JsonValue, task: ClaimedTask, journal: Journal) -> JsonValue | Suspended:
        """A step that waits for the decision, then the tool's own."""
        approved = journal.approval(self.name, arguments, self.timeout)
        return approved if isinstance(approved, Suspended) else self.tool.call(approved, task, journal)
