"""How one execution of a task can end. Expected outcomes are values, not exceptions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from shared.contracts.strict_json import JsonValue
from shared.errors import BudgetExceeded, MinionError
from shared.schemas import Message


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The task is done. `messages` are what it adds to its conversation."""

    output: JsonValue
    messages: list[Message] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Failed:
    """The task could not be done this time; `error.retryable` says whether it may run again by itself."""

    error: MinionError


@dataclass(frozen=True, slots=True)
class ChildRequest:
    """A sub-task to be created: its place in the parent's journal, and what is asked of whom."""

    step: int
    agent: str
    request_hash: str
    input: JsonValue

    def as_json(self) -> dict[str, Any]:
        """As `minion_suspend` takes it."""
        return {
            "step": self.step,
            "name": self.agent,
            "request_hash": self.request_hash,
            "request": {"agent": self.agent, "input": self.input},
        }


@dataclass(frozen=True, slots=True)
class WaitRequest:
    """A signal to wait for, for so many seconds at most; without a signal a timer, or somebody's approval of the
    arguments of the call `name`: a list of one, for they may be null.
    """

    step: int
    signal: str | None
    seconds: float | None
    request_hash: str
    name: str = "timer"
    approval: list[JsonValue] | None = None

    def as_json(self) -> dict[str, Any]:
        """As `minion_suspend` takes it."""
        return {
            "step": self.step,
            "name": self.signal or self.name,
            "request_hash": self.request_hash,
            "seconds": self.seconds,
            "signal": self.signal is not None,
            "approval": self.approval,
        }


@dataclass(frozen=True, slots=True)
class Suspended:
    """The task waits for sub-tasks, signals and timers, without a worker's slot, and runs again when all are over.

    `asks`: it waits until somebody says what became of a step that was interrupted. `over`: it waits until the budget
    that has no room for its next step has.
    """

    children: list[ChildRequest] = field(default_factory=list)
    waits: list[WaitRequest] = field(default_factory=list)
    asks: bool = False
    over: BudgetExceeded | None = None


Outcome = Succeeded | Failed | Suspended


@dataclass(frozen=True, slots=True)
class ChildOutcome:
    """How a sub-task ended."""

    task_id: UUID
    agent: str
    input: JsonValue
    state: str
    output: JsonValue
    error: dict[str, Any] | None

    @property
    def succeeded(self) -> bool:
        return self.state == "succeeded"


IN_PLACE_SECONDS = 2.0
"""Who has to wait less does so in place; for longer the task is suspended, and its slot is free."""


class Snoozed(Exception):
    """The task is to run again after so many seconds, uncharged.

    Attributes:
        reason: what it waits for, as `minion why` knows it.
        error: what kept the step that is under way from being finished, for the journal.
    """

    def __init__(self, seconds: float, reason: str = "snooze", error: MinionError | None = None) -> None:
        super().__init__(seconds)
        self.seconds = seconds
        self.reason = reason
        self.error = error


class Interrupted(Exception):
    """An unsafe step was interrupted. Whether it happened is not known, so somebody has to say.

    Attributes:
        error: what interrupted it, if it was no crash, for the journal.
    """

    def __init__(self, error: MinionError | None = None) -> None:
        super().__init__()
        self.error = error


class ClaimLost(Exception):
    """The fence is lost: another claim holds the task, or it has ended. Nothing may be written any more."""
