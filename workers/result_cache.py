"""The cache of results: a pure call uses the result that an earlier call left.

Tasks share a result only within one namespace and one tenant key. The key of a result covers everything that it may
depend on: the pinned version, the canonical input, and what `depends_on` adds. Failed calls leave nothing.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from uuid import UUID

from shared.contracts.durations import seconds_of
from shared.contracts.strict_json import JsonValue, canonical
from shared.database.connections import persistently
from shared.tasks import cached_results, trials
from shared.tasks.directives import directive_in
from workers.steps import Perform, StepResult
from workers.task import ClaimedTask

FORMAT = 1
"""Of the keys."""


@dataclass(frozen=True, slots=True)
class ResultCache:
    """The shared results of one pinned version.

    Attributes:
        version: identifies the version of the tool or function.
        duration: how long a result may be used.
        function: the function version whose results these are, if they are: while it is quarantined, none is used.
        depends_on: returns what else the results depend on at this time.
    """

    version: UUID
    duration: str
    function: UUID | None = None
    depends_on: Callable[[], JsonValue] = lambda: None

    def around(self, perform: Perform, task: ClaimedTask, arguments: JsonValue) -> Perform:
        """Return the effect of a step that looks for a result first, and leaves its own. A trial does neither."""
        if task.journal_format == trials.FORMAT:
            return perform
        seconds = seconds_of(self.duration)

        def perform_once(step: int) -> StepResult:
            key = self._key(task, arguments)
            if found := persistently(cached_results.look, key, seconds=seconds):
                origin: dict[str, JsonValue] = {
                    "task_id": str(found.task_id),
                    "step": found.step,
                    "created_at": found.created_at.isoformat(),
                }
                return StepResult(found.output, function_version_id=self.function, cached=origin)
            result = perform(step)
            # A wait is not a result.
            if directive_in(result.output) is None:
                persistently(
                    cached_results.keep,
                    key,
                    result.output,
                    seconds=seconds,
                    namespace=task.namespace,
                    function=self.function,
                    task=task.id,
                    step=step,
                )
            return result

        return perform_once

    def _key(self, task: ClaimedTask, arguments: JsonValue) -> str:
        parts: JsonValue = [FORMAT, task.namespace, task.key, str(self.version), arguments, self.depends_on()]
        return hashlib.sha256(canonical(parts).encode("utf-8", "surrogatepass")).hexdigest()


def interpreter(imports: Iterable[str]) -> JsonValue:
    """Return the versions of Python and of the packages that a function may import."""
    packages = {name.partition(".")[0] for name in imports} - sys.stdlib_module_names
    return [platform.python_version(), *(_versions(name) for name in sorted(packages))]


@cache
def _versions(package: str) -> str:
    """Return the distributions that provide a package, with their versions."""
    names = sorted(set(metadata.packages_distributions().get(package, ())))
    return f"{package}: {', '.join(f'{name} {metadata.version(name)}' for name in names)}"
