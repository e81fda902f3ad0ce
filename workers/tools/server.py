"""Tools of the kinds that the API runs within a model call: searches, fetches, code. This worker never calls them."""

from __future__ import annotations

from typing import Any

from shared.contracts.documents import ToolDefinition
from shared.contracts.server_tools import ApiTool
from shared.contracts.strict_json import JsonValue
from shared.errors import ToolError
from workers.journal import Journal
from workers.task import ClaimedTask


class ServerTool:
    """A tool that the API runs.

    Attributes:
        settings: the API's, and our limits.
    """

    def __init__(self, definition: ToolDefinition, settings: ApiTool) -> None:
        self.settings = settings
        self.name = definition.name
        self.description = definition.description
        self.input_schema: dict[str, Any] | None = None
        self.output_schema: dict[str, Any] | None = None
        self.strict = False
        self.deferred = False
        self.effect = "idempotent"
        self.steps = 0

    def call(self, arguments: JsonValue, task: ClaimedTask, journal: Journal) -> JsonValue:
        """Refuse the call: only the API can make it."""
        error = ToolError(f"The tool {self.name!r} is run by the API of a model, not by a worker.")
        error.retryable = False
        raise error
