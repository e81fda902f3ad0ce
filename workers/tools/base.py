"""What a tool is to an agent: arguments in, JSON out, one or more journal steps."""

from __future__ import annotations

from typing import Any, Protocol

from shared.contracts.strict_json import JsonValue
from workers.journal import Journal
from workers.outcomes import Suspended
from workers.task import ClaimedTask


class Tool(Protocol):
    """A tool, pinned. It has no state of its own: the same object serves every task of a process.

    Attributes:
        effect: `pure`, `idempotent` or `unsafe`; calls of the first two may be made at the same time as others.
        steps: how many journal steps a call takes.
    """

    name: str
    description: str
    input_schema: dict[str, Any] | None
    effect: str
    steps: int

    def call(self, arguments: JsonValue, task: ClaimedTask, journal: Journal) -> JsonValue | Suspended:
        """Makes the call as a journal step, or reads it back. The result may ask for a wait: see `tools.control`.

        Raises:
            MinionError: it could not be done.
        """
