"""Outcomes of one execution of a task. Expected outcomes are values, not exceptions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from shared.contracts.requests import Message
from shared.contracts.strict_json import JsonValue
from shared.errors import BudgetExceeded, MinionError
from shared.tasks.records import ChildRecord, WaitRecord
from shared.tasks.remote_calls import NewRemoteCall


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The task is done. `messages` are what it adds to its conversation."""

    output: JsonValue
    messages: list[Message] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Failed:
    """The task failed this time; `error.retryable` says whether it may be retried automatically."""

    error: MinionError


@dataclass(frozen=True, slots=True)
class Caller:
    """The place in a program that makes a call: the number of the program's step, and the line if it is known."""

    program: int | None = None
    line: int | None = None


OUTSIDE = Caller()
"""The caller of a step that no program made."""


@dataclass(frozen=True, slots=True)
class ChildRequest:
    """A sub-task to be created: its position in the parent's journal, its agent and its request."""

    step: int
    agent: str
    request_hash: str
    input: JsonValue
    caller: Caller = OUTSIDE

    def as_json(self) -> ChildRecord:
        """Return the form that `minion_suspend` expects."""
        return {
            "step": self.step,
            "name": self.agent,
            "request_hash": self.request_hash,
            "request": {"agent": self.agent, "input": self.input},
            "program": self.caller.program,
            "line": self.caller.line,
        }


@dataclass(frozen=True, slots=True)
class WaitRequest:
    """A signal to wait for, with a limit in seconds. Without a signal it is a timer, or a wait for the approval of the
    arguments of the call `name`; these are in a list with one element, because they may be null.
    """

    step: int
    signal: str | None
    seconds: float | None
    request_hash: str
    name: str = "timer"
    approval: list[JsonValue] | None = None
    caller: Caller = OUTSIDE

    def as_json(self) -> WaitRecord:
        """Return the form that `minion_suspend` expects."""
        return {
            "step": self.step,
            "name": self.signal or self.name,
            "request_hash": self.request_hash,
            "seconds": self.seconds,
            "signal": self.signal is not None,
            "approval": self.approval,
            "program": self.caller.program,
            "line": self.caller.line,
        }


@dataclass(frozen=True, slots=True)
class Suspended:
    """The task waits for sub-tasks, signals and timers without a worker slot, and runs again when all have ended.

    It also waits for calls that their servers finish later, which the journal has recorded (`Deferred`).
    """

    children: list[ChildRequest] = field(default_factory=list)
    waits: list[WaitRequest] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Snoozed:
    """The task runs again after `seconds`, uncharged; None: when something wakes it. `reason` is what it waits for, as
    shown by `minion why`.
    """

    seconds: float | None
    reason: str = "snooze"


@dataclass(frozen=True, slots=True)
class AwaitingDecision:
    """An unsafe step was interrupted: the task waits until a person decides whether the step took effect."""


@dataclass(frozen=True, slots=True)
class OverBudget:
    """The task waits until its budget has room for its next step."""

    error: BudgetExceeded


@dataclass(frozen=True, slots=True)
class AwaitingBatch:
    """The task waits until its model call is answered in a Message Batch."""


Outcome = Succeeded | Failed | Suspended | Snoozed | AwaitingDecision | OverBudget | AwaitingBatch


@dataclass(frozen=True, slots=True)
class ChildOutcome:
    """Outcome of a sub-task."""

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
"""Shorter waits keep the slot; for longer ones the task is suspended and its slot becomes free."""


class Postponed(Exception):
    """Raised inside a step, or before it begins, to end the execution as `Snoozed`.

    Attributes:
        outcome: the delay and its reason.
        error: the cause that kept the step from finishing, for the journal.
    """

    def __init__(self, seconds: float | None, reason: str = "snooze", error: MinionError | None = None) -> None:
        super().__init__(seconds)
        self.outcome = Snoozed(seconds, reason)
        self.error = error


class Batched(Exception):
    """Raised when a model call is in the batch lane and has no answer yet. Ends as `AwaitingBatch`."""


class Deferred(Exception):
    """Raised inside a step when the server of a tool will finish the call later. Ends as `Suspended`.

    Attributes:
        call: for the journal; None if it has it already.
        usage: for the step.
    """

    def __init__(self, call: NewRemoteCall | None = None, usage: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.call = call
        self.usage = usage


class Interrupted(Exception):
    """An unsafe step was interrupted, and it is not known whether it took effect. Ends as `AwaitingDecision`.

    Attributes:
        error: the cause of the interruption, for the journal; None after a crash.
    """

    def __init__(self, error: MinionError | None = None) -> None:
        super().__init__()
        self.error = error


class ClaimLost(Exception):
    """The fence is lost: another claim holds the task, or it has ended. Nothing more may be written."""
