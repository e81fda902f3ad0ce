"""Tools of kind `function`: a stored function, run in the sandbox."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from shared.contracts.documents import ToolDefinition
from shared.contracts.strict_json import JsonValue
from shared.database.connections import get_engine
from shared.functions.runner import StoredFunction, run_function
from workers.journal import Journal
from workers.result_cache import ResultCache, interpreter
from workers.steps import StepResult
from workers.task import ClaimedTask
from workers.tools import place
from workers.tools.blocks import keeping_files
from workers.tools.directives import obey


class FunctionTool:
    """A pinned function version. It has no external effects, so its step is pure."""

    def __init__(self, definition: ToolDefinition, function: StoredFunction) -> None:
        self.name = definition.name
        self.description = definition.description or function.definition.description
        self.input_schema: dict[str, Any] | None = definition.input_schema or function.definition.input_schema
        self.output_schema: dict[str, Any] | None = definition.output_schema or function.definition.output_schema
        self.strict = definition.strict
        self.deferred = definition.defer_loading
        self.effect = "pure"
        self.steps = 1
        self.function = function
        self.cache = _cache_of(definition, function)

    @classmethod
    def for_function(cls, function: StoredFunction) -> FunctionTool:
        """Build the tool for a function that an agent runs without a tool definition."""
        return cls(ToolDefinition(name="function", type="function", function=function.name), function)

    def call(self, arguments: JsonValue, task: ClaimedTask, journal: Journal) -> JsonValue:
        """Run one pure step."""

        def perform(step: int) -> StepResult:
            made = place.perform(self, arguments, task, step)
            return replace(made, output=obey(made.output, self.function.name))

        request = {"function": str(self.function.version_id), "arguments": arguments}
        once = self.cache.around(perform, task, arguments) if self.cache else perform
        kept = keeping_files(once, task, self.function.name)
        return journal.call("function_call", self.function.name, request, kept, effect=self.effect)

    def perform(self, arguments: JsonValue, task: ClaimedTask, step: int) -> StepResult:
        """Run the function in this process's sandbox."""
        value, outcome = run_function(self.function, arguments, task.context(), engine=get_engine(), task_id=task.id)
        return StepResult(
            value,
            stdout=outcome.stdout or None,
            cpu_seconds=outcome.cpu_time,
            peak_memory_bytes=outcome.peak_memory,
            function_version_id=self.function.version_id,
        )


def _cache_of(definition: ToolDefinition, function: StoredFunction) -> ResultCache | None:
    """Return the cache that the tool, or else the function, asks for. All tools of a function version share it."""
    duration = definition.cache or function.definition.cache
    if duration is None:
        return None
    imports = function.definition.config.allowed_imports
    return ResultCache(function.version_id, duration, function.version_id, lambda: interpreter(imports))
