"""The recording of a task: what it received, each step with its request and result, and how it ended.

A trial runs another version of the agent against it. A sub-task is part of the step that created it.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.contracts.strict_json import JsonValue, check, digest, parse
from shared.contracts.strict_model import Strict, faults_of
from shared.errors import InvalidInput

MOST_STEPS = 2000
DEEPEST = 10
"""Levels of sub-tasks."""

StepKind = Literal["model_call", "tool_call", "function_call", "subtask", "wait"]
Effect = Literal["pure", "idempotent", "unsafe"]
Level = Literal["replay", "shadow"]
"""How much of a trial is real: nothing but the agent's own path, or also its model."""


class _Open(BaseModel):
    """Something that another part of the system has written, of which only these fields are read here."""

    model_config = ConfigDict(extra="allow", strict=True)


class RecordedError(_Open):
    """The error of a step or a task."""

    type: str
    message: str


class Block(_Open):
    """A block of a model's reply."""

    type: str


class Text(Block):
    """What the model said."""

    type: Literal["text"]
    text: str


class ToolUse(Block):
    """A call that the model asked for."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ServerToolUse(Block):
    """A call that the model's API made itself."""

    type: Literal["server_tool_use"]
    id: str
    name: str


class Reply(_Open):
    """The output of a model call."""

    content: list[Text | ToolUse | ServerToolUse | Block]
    stop_reason: str
    model: str
    exact: str | None = None
    form: int | None = None
    max_calls: int | None = Field(None, ge=1)
    stop_details: dict[str, Any] | None = None
    container: dict[str, Any] | None = None
    server_tool_uses: dict[str, int] | None = None

    @model_validator(mode="after")
    def _known_blocks_are_whole(self) -> Self:
        for block in self.content:
            if type(block) is Block and block.type in ("text", "tool_use", "server_tool_use"):
                raise ValueError(f"a block of type {block.type} lacks a field, or has one of another type")
        if self.exact is not None and not _is_list(self.exact):
            raise ValueError("`exact` must be the JSON text of a list of blocks")
        return self


def _is_list(text: str) -> bool:
    try:
        return isinstance(parse(text), list)
    except InvalidInput:
        return False


class RecordedStep(Strict):
    """One step of the journal. Steps of a kind `subtask` have the sub-task instead of a result."""

    number: int = Field(ge=1, le=2**31 - 1)
    kind: StepKind
    name: str = Field(max_length=1000)
    effect: Effect = "pure"
    request: Any = None
    output: Any = None
    error: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    cost_microdollars: int = Field(0, ge=0)
    seconds: float | None = Field(None, ge=0)
    task: RecordedTask | None = None

    @model_validator(mode="after")
    def _has_its_result(self) -> Self:
        if (self.kind == "subtask") != (self.task is not None):
            raise ValueError("a step of kind `subtask` must have its `task`, and no other step may have one")
        if self.kind == "model_call" and self.error is None:
            Reply.model_validate(self.output)
        if self.error is not None:
            RecordedError.model_validate(self.error)
        return self


class RecordedTask(Strict):
    """A task and its journal.

    Attributes:
        id: of the task. Results of chains name their sub-tasks by it.
    """

    id: str | None = Field(None, pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
    agent: str = Field(max_length=200)
    version: int | None = Field(None, ge=1)
    input: Any = None
    messages: list[dict[str, Any]] | None = Field(None, max_length=1000)
    steps: list[RecordedStep] = Field([], max_length=MOST_STEPS)
    state: Literal["succeeded", "failed", "cancelled", "expired"] = "succeeded"
    output: Any = None
    error: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        numbers = [step.number for step in self.steps]
        if len(set(numbers)) < len(numbers):
            raise ValueError("steps must have different numbers")
        if self.error is not None:
            RecordedError.model_validate(self.error)
        return self

    def step(self, number: int) -> RecordedStep | None:
        """Return the step with a number."""
        return next((step for step in self.steps if step.number == number), None)

    def subtask(self, agent: str, value: JsonValue) -> RecordedTask | None:
        """Return the first sub-task of an agent with an equal input."""
        wanted = digest(value)
        tasks = (step.task for step in self.steps if step.task is not None)
        return next((task for task in tasks if task.agent == agent and digest(task.input) == wanted), None)


def parse_recording(data: Any, *, what: str = "The recording") -> RecordedTask:
    """Return a recording from plain data.

    Raises:
        InvalidInput: names each wrong field, or the limit that it exceeds.
    """
    check(data, what=what)
    try:
        recording = RecordedTask.model_validate(data)
    except ValidationError as error:
        faults = faults_of(error)
        raise InvalidInput(f"{what} is not valid: " + "; ".join(faults) + ".", faults=faults) from None
    if (steps := _count(recording, 1, what)) > MOST_STEPS:
        raise InvalidInput(f"{what} has {steps:,} steps, and {MOST_STEPS:,} is the most. Record a shorter task.")
    return recording


def _count(task: RecordedTask, depth: int, what: str) -> int:
    if depth > DEEPEST:
        raise InvalidInput(f"{what} has sub-tasks on more than {DEEPEST} levels. Record one of the sub-tasks.")
    below = (step.task for step in task.steps if step.task is not None)
    return len(task.steps) + sum(_count(each, depth + 1, what) for each in below)
