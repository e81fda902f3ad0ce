"""Tools of kind `memory`: files in which a model remembers things, in this installation's database.

Views are pure. A change is made once, however often its step runs: the store keeps the key of the call.
"""

from __future__ import annotations

from typing import Any

from shared.contracts.documents import ToolDefinition
from shared.contracts.server_tools import Memory
from shared.contracts.strict_json import JsonValue, digest
from shared.database.connections import persist, persistently, transaction
from shared.errors import ToolError
from shared.memories import commands, store
from shared.memories.store import Address, Origin
from workers.journal import Journal
from workers.outcomes import ClaimLost
from workers.steps import StepResult
from workers.task import ClaimedTask


class MemoryTool:
    """The API's memory tool, over a store of files per conversation, tenant or agent."""

    def __init__(self, definition: ToolDefinition, settings: Memory) -> None:
        self.settings = settings
        self.name = definition.name
        self.description = definition.description
        self.input_schema: dict[str, Any] | None = {"type": "object"}
        self.output_schema: dict[str, Any] | None = None
        self.strict = False
        self.deferred = False
        # For the order: calls of one turn build on each other.
        self.effect = "unsafe"
        self.steps = 1

    def call(self, arguments: JsonValue, task: ClaimedTask, journal: Journal) -> JsonValue:
        """Run one step: pure for a view, else idempotent.

        Raises:
            InvalidInput: the command is refused; the error is in the words that models know.
            ToolError: the task has no memory.
        """
        fields = commands.checked(arguments)
        address = self._address(task, journal)
        request = {"memory": [address.per, address.owner], **fields}

        def look(step: int) -> StepResult:
            return StepResult(persistently(store.view, address, fields))

        def change(step: int) -> StepResult:
            key = digest([str(task.origin_id), step, digest(request)])
            origin = Origin(task.agent_name, task.id, step, key)

            def attempt() -> str | None:
                with transaction() as connection:
                    return store.change(connection, address, fields, self.settings, origin, task.claim)

            if (result := persist(attempt)) is None:
                raise ClaimLost
            return StepResult(result)

        if fields["command"] == "view":
            return journal.call("tool_call", self.name, request, look, effect="pure", outside="unsafe")
        return journal.call("tool_call", self.name, request, change, effect="idempotent", outside="unsafe")

    def _address(self, task: ClaimedTask, journal: Journal) -> Address:
        if journal.is_trial:
            # It has neither a conversation nor a tenant, and its memory is in its recording.
            return Address(task.namespace, self.name, self.settings.per, "", None)
        match self.settings.per:
            case "conversation":
                owner, key, lacks = task.conversation_id, task.key, "belongs to no conversation"
            case "tenant":
                owner, key, lacks = task.key, task.key, "has no tenant key"
            case "agent":
                owner, key, lacks = task.agent_name, None, ""
        if owner is None:
            error = ToolError(f"Error: There is no memory here, because this task {lacks}.")
            error.retryable = False
            raise error
        return Address(task.namespace, self.name, self.settings.per, owner, key)
