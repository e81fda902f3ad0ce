"""Interface between tools and agents: arguments in, JSON out, one or more journal steps."""

from __future__ import annotations

from typing import Any, Protocol

from shared.contracts.strict_json import JsonValue
from workers.journal import Journal
from workers.outcomes import Suspended
from workers.task import ClaimedTask


class Tool(Protocol):
    """A pinned tool. It is stateless: the same object serves every task of a process.

    Attributes:
        effect: `pure`, `idempotent` or `unsafe`; calls of the first two may run in parallel with others.
        steps: number of journal steps per call.
        strict: a model can write only input that matches the schema.
        deferred: a model has to search for the tool before it can call it.
    """

    name: str
    description: str
    input_schema: dict[str, Any] | None
    output_schema: dict[str, Any] | None
    strict: bool
    deferred: bool
    effect: str
    steps: int

    def call(self, arguments: JsonValue, task: ClaimedTask, journal: Journal) -> JsonValue | Suspended:
        """Make the call as a journal step, or read it back. The result may request a wait: see `tools.directives`.

        Raises:
            MinionError: the call failed.
        """
