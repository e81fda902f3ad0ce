"""Agent without a model: one function or tool whose input and output are the task's."""

from __future__ import annotations

from shared.contracts.documents import AgentDefinition
from shared.contracts.strict_json import JsonValue
from workers.base import BaseAgent
from workers.journal import Journal
from workers.outcomes import Outcome, Suspended
from workers.task import ClaimedTask
from workers.tools.base import Tool
from workers.tools.directives import begin_wait


class FunctionAgent(BaseAgent):
    """Runs one sandboxed function or one tool."""

    def __init__(self, definition: AgentDefinition, task: ClaimedTask, journal: Journal, target: Tool) -> None:
        super().__init__(definition, task, journal)
        self.target = target

    def work(self, value: JsonValue) -> Outcome:
        """Run one step, and wait if its result asks for it."""
        output = begin_wait(self.target.call(value, self.task, self.journal), self.journal)
        return output if isinstance(output, Suspended) else self.succeed(output)
