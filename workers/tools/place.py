"""The place of a call that may take a processor or never return: a process that can be killed at a time limit.

A slot of the pool is such a process, and makes the call itself. The lane runs many tasks, and hands the call to a slot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from shared.contracts.strict_json import JsonValue
from workers.steps import StepResult
from workers.task import ClaimedTask


class PlacedTool(Protocol):
    """A tool whose calls need such a place."""

    name: str

    def perform(self, arguments: JsonValue, task: ClaimedTask, step: int) -> StepResult:
        """Make the call in this process. A directive is returned as it is."""


Place = Callable[[PlacedTool, JsonValue, ClaimedTask, int], StepResult]


def _here(tool: PlacedTool, arguments: JsonValue, task: ClaimedTask, step: int) -> StepResult:
    return tool.perform(arguments, task, step)


_places: list[Place] = [_here]


def perform(tool: PlacedTool, arguments: JsonValue, task: ClaimedTask, step: int) -> StepResult:
    """Make a call in its place."""
    return _places[-1](tool, arguments, task, step)


def move_calls(place: Place) -> None:
    """Make this process's calls in another place from now on."""
    _places.append(place)
