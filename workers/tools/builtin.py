"""Tools of kind `builtin`: trusted Python from installed packages, found by entry point.

A package offers one in its `pyproject.toml`:

    [project.entry-points."minions.tools"]
    send-mail = "our_package.tools:send_mail"

and defines `def send_mail(arguments: dict, context: ToolContext) -> JSON value` (or `async def`), or a function with
its own typed parameters below `@minions.tool`. `minions.results` has the values that it may return to make its task
wait. It runs inside the minion with the minion's rights: code of unknown origin belongs in the function store.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from uuid import UUID

from celery.exceptions import SoftTimeLimitExceeded

from minions.definitions import BuiltinTool as DeclaredTool
from minions.results import GiveUp
from shared.contracts.documents import ToolDefinition
from shared.contracts.json_schema import validate
from shared.contracts.strict_json import JsonValue, check, digest
from shared.database.connections import behind_time_limit
from shared.errors import InvalidInput, InvalidOutput, MinionError, ToolError
from shared.settings import get_settings
from shared.tasks.directives import is_result
from workers.journal import Journal
from workers.outcomes import Interrupted
from workers.result_cache import ResultCache
from workers.steps import StepResult
from workers.task import ClaimedTask
from workers.tools import place
from workers.tools.blocks import keeping_files
from workers.tools.directives import obey

GROUP = "minions.tools"


@dataclass(frozen=True, slots=True)
class ToolContext:
    """Context of a call that a builtin tool receives.

    Attributes:
        attempt: 1 for the first.
        claim: the fencing token of this run: a tool that keeps its own record can refuse a smaller one.
        idempotency_key: the same whenever this call is repeated, after a crash or in a replay.
        data_dir: the installation's data folder.
    """

    task_id: str
    root_id: str
    agent: str
    attempt: int
    claim: int
    conversation_id: str | None
    idempotency_key: str
    data_dir: Path


class BuiltinTool:
    """A function of an installed package."""

    def __init__(self, definition: ToolDefinition, version_id: UUID) -> None:
        self.definition = definition
        self.cache = definition.cache and ResultCache(
            version_id, definition.cache, depends_on=lambda: installed(str(definition.builtin))
        )
        self.name = definition.name
        self.description = definition.description
        self.input_schema: dict[str, Any] | None = definition.input_schema
        self.output_schema: dict[str, Any] | None = definition.output_schema
        self.strict = definition.strict
        self.deferred = definition.defer_loading
        self.effect = str(definition.effect)
        self.steps = 1

    def call(self, arguments: JsonValue, task: ClaimedTask, journal: Journal) -> JsonValue:
        """Run one step with the tool's declared effect."""
        request = self._request(arguments)

        def perform(step: int) -> StepResult:
            made = place.perform(self, arguments, task, step)
            return replace(made, output=obey(made.output, self.name))

        once = self.cache.around(perform, task, arguments) if self.cache else perform
        return journal.call("tool_call", self.name, request, keeping_files(once, task, self.name), effect=self.effect)

    def perform(self, arguments: JsonValue, task: ClaimedTask, step: int) -> StepResult:
        """Make the call in this process, and check its input and output."""
        definition = self.definition
        validate(self.input_schema, arguments, what=f"The input of tool {self.name!r}", error=InvalidInput)
        context = _context(task, step, self._request(arguments))
        output = self._run(load(str(definition.builtin)), arguments, context)
        what = f"The output of tool {self.name!r}"
        check(output, what=what, limit=get_settings().max_output_bytes)
        if is_result(output):
            validate(definition.output_schema, output, what=what, error=InvalidOutput)
        return StepResult(output)

    def _request(self, arguments: JsonValue) -> JsonValue:
        return {"tool": self.definition.builtin, "arguments": arguments}

    def _run(self, function: Callable[..., Any], arguments: JsonValue, context: ToolContext) -> JsonValue:
        try:
            result = function(arguments, context)
            return asyncio.run(_await(result)) if inspect.isawaitable(result) else result
        except (MinionError, SoftTimeLimitExceeded):
            raise
        except Exception as error:
            if behind_time_limit(error):
                raise SoftTimeLimitExceeded from error
            if isinstance(error, GiveUp):
                given_up = ToolError(f"The tool {self.name!r} gave up: {error}"[:2000])
                given_up.retryable = False
                raise given_up from error
            failure = ToolError(f"The tool {self.name!r} raised {type(error).__name__}: {error}"[:2000])
            # An error may follow an effect, such as a time-out after the card was charged.
            raise (Interrupted(failure) if self.effect == "unsafe" else failure) from error


@lru_cache(maxsize=256)
def load(name: str) -> Callable[..., Any]:
    """Return the function of an entry point.

    Raises:
        ToolError: no installed package offers it, or it cannot be imported; another minion may succeed.
    """
    found = entry_points(group=GROUP, name=name)
    if not found:
        offered = sorted({entry.name for entry in entry_points(group=GROUP)})
        raise ToolError(
            f"No package installed beside this minion offers the builtin tool {name!r} (entry-point group {GROUP}). "
            f"Offered: {', '.join(offered)}."
        )
    try:
        function: Callable[..., Any] = next(iter(found)).load()
    except Exception as error:
        raise ToolError(f"The builtin tool {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    return function.run if isinstance(function, DeclaredTool) else function


def installed(name: str) -> str | None:
    """Return the distribution that offers an entry point, with its version."""
    found = entry_points(group=GROUP, name=name)
    distribution = next(iter(found)).dist if found else None
    return None if distribution is None else f"{distribution.name} {distribution.version}"


async def _await(result: Any) -> Any:
    return await result


def _context(task: ClaimedTask, step: int, request: JsonValue) -> ToolContext:
    return ToolContext(
        task_id=str(task.id),
        root_id=str(task.root_id),
        agent=task.agent_name,
        attempt=task.attempts + 1,
        claim=task.claim,
        conversation_id=task.conversation_id,
        idempotency_key=digest([str(task.origin_id), step, digest(request)]),
        data_dir=get_settings().data_dir,
    )
