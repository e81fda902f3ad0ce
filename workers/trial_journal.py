"""Trials: the same run of an agent, with a journal that decides which effects begin.

At the level `replay` none does: every step must be the recorded one, and has the recorded result. At the level `shadow`
the model is called, and other steps have the result that was recorded for the same call. A call that was not recorded
is made if it is pure, or idempotent and the trial permits that. Any other one ends the task.

Nothing waits: for a person, a signal or a timer there is a recorded result, or the task ends.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any
from uuid import UUID

from shared.contracts.recording import RecordedStep, RecordedTask
from shared.contracts.strict_json import JsonValue, canonical, digest, first_difference, parse, stable
from shared.database.connections import persistently
from shared.errors import (
    FunctionError,
    InvalidInput,
    InvalidOutput,
    MinionError,
    ModelError,
    NotFound,
    RecordingDiffers,
    ToolError,
    WouldHaveCalled,
    from_record,
)
from shared.tasks import trials
from shared.tasks.batches import BatchCall
from shared.tasks.records import KnownStep, StepRecord
from shared.tasks.trials import Trial
from workers.journal import Journal
from workers.outcomes import ChildOutcome, ChildRequest
from workers.pricing import Reservation
from workers.steps import Kind, Outside, Perform, StepResult

ENDS = frozenset({RecordingDiffers.code, WouldHaveCalled.code})
"""Errors that end the whole trial, also when a sub-task ends with them."""
OF_CALLS = (ToolError, FunctionError, ModelError, InvalidInput, InvalidOutput)
"""Errors with which a call can fail."""
LONGEST_SHOWN = 20_000
"""Characters of a request in an error."""
LATEST = 1e11
"""Of the times that a program may have begun, in seconds."""
ELAPSED: JsonValue = {"timed_out": True}
"""The result of a timer, which a trial does not wait for."""


@dataclass
class Answers:
    """The recorded results of a task's calls, for calls in any order.

    Calls with the same name and arguments have their results in the recorded order. The last one is repeated, except
    that of an unsafe call.
    """

    recording: RecordedTask
    _taken: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, kind: str, name: str, request: JsonValue, *, is_unsafe: bool) -> RecordedStep | None:
        """Return the recorded step of the next call with this name and request; None: there is none."""
        call = _identity(kind, name, request)
        with self._lock:
            place = self._taken[call]
            self._taken[call] += 1
        found = self._steps.get(call, [])
        if place < len(found):
            return found[place]
        return found[-1] if found and not is_unsafe else None

    @cached_property
    def _steps(self) -> dict[str, list[RecordedStep]]:
        steps: dict[str, list[RecordedStep]] = defaultdict(list)
        for step in sorted(self.recording.steps, key=lambda step: step.number):
            if step.kind not in ("model_call", "subtask"):
                steps[_identity(step.kind, step.name, step.request)].append(step)
        return steps


@dataclass
class TrialJournal(Journal):
    """The journal of a task of a trial."""

    is_trial = True

    @cached_property
    def trial(self) -> Trial:
        """What the task runs against.

        Raises:
            NotFound: nothing is stored, so nothing can run.
        """
        found = persistently(trials.load, self.task_id)
        if found is None:
            raise NotFound("The recording of this trial is not stored. Run `minion eval` again.")
        return found

    @cached_property
    def recording(self) -> RecordedTask:
        """The recording; one without steps for a sub-task that was not recorded."""
        return self.trial.recording or RecordedTask(agent="")

    @cached_property
    def answers(self) -> Answers:
        """The recorded results, which all parts of the journal share."""
        return Answers(self.recording)

    def part(self, steps: int) -> Journal:
        """Return the journal for one of several parallel calls, with the same answers."""
        assert self.answers
        return super().part(steps)

    @property
    def is_replay(self) -> bool:
        """Return whether every step must be the recorded one."""
        return self.trial.level == "replay"

    def wait(self, signal: str | None, seconds: float | None) -> JsonValue:
        """Return the recorded result of a wait. A timer has elapsed."""
        request: JsonValue = {"signal": signal, "seconds": seconds}
        outside: Outside = "pure" if signal is None else "unsafe"
        return self.call(
            "wait", signal or "timer", request, lambda _: StepResult(ELAPSED), effect="pure", outside=outside
        )

    def approval(self, name: str, arguments: JsonValue, seconds: float | None = None) -> JsonValue:
        """Return the arguments that a person approved in the recording.

        Raises:
            ToolError: the call was rejected, or was not decided in time.
            WouldHaveCalled: no person decided about this call.
        """
        request: JsonValue = {"approval": arguments}
        decided = self.call("wait", name, request, _never_made, effect="pure", outside="unsafe")
        if not isinstance(decided, dict) or "arguments" not in decided:
            error = ToolError(f"Nobody has approved {name!r} in time.")
            error.retryable = False
            raise error
        return decided["arguments"]

    def facts_of_program(self, number: int, facts: dict[str, Any]) -> dict[str, Any]:
        step = self.recording.step(number) if self.is_replay else None
        recorded = step.request if step is not None and isinstance(step.request, dict) else {}
        # A case is edited by hand.
        return {name: recorded[name] if _fits(recorded.get(name), fact) else fact for name, fact in facts.items()}

    def _child_outcome(self, child: ChildRequest, step: KnownStep) -> ChildOutcome:
        outcome = super()._child_outcome(child, step)
        if outcome.error is not None and outcome.error.get("type") in ENDS:
            raise from_record(outcome.error)
        recorded = self.trial.below(child.step, child.agent, child.input)
        if recorded is None:
            return outcome
        # Results of chains name their sub-tasks, and the attempts of those that failed. A trial makes one attempt.
        is_same_failure = self.is_replay and _type_of(outcome.error) == _type_of(recorded.error)
        return replace(
            outcome,
            task_id=UUID(recorded.id) if recorded.id else outcome.task_id,
            error=recorded.error if is_same_failure else outcome.error,
        )

    def matching(self, number: int, kind: str, name: str, request_hash: str, request: JsonValue) -> KnownStep | None:
        if self.is_replay:
            self._compare(number, kind, name, request)
        known = super().matching(number, kind, name, request_hash, request)
        # A step that was interrupted had no effect, so no person decides about it: it is run again.
        if known is not None and known["status"] == "started" and kind != "subtask" and "program" not in known:
            return None
        return known

    def _effect_of(self, kind: Kind, name: str, request: JsonValue, perform: Perform, outside: Outside) -> Perform:
        if self.is_replay:
            return self._replayed
        if outside == "nothing":
            return perform
        if kind != "model_call" and (step := self.answers.take(kind, name, request, is_unsafe=outside == "unsafe")):
            return lambda _: _result_of(step)
        if outside == "pure" or (outside == "idempotent" and self.trial.allow_idempotent):
            return perform
        return _ending(_would_have_called(kind, name, request, outside))

    def begin(
        self, started: StepRecord, reserve: Callable[[], Reservation] | None, call: BatchCall | None = None
    ) -> Reservation | None:
        # To count the tokens is a request to the model's API.
        return super().begin(started, None if self.is_replay else reserve, call)

    def _replayed(self, number: int) -> StepResult:
        step = self.recording.step(number)
        assert step is not None, "the step was compared"
        return _result_of(step)

    def _compare(self, number: int, kind: str, name: str, request: JsonValue) -> None:
        step = self.recording.step(number)
        asked = _comparable(kind, name, request)
        recorded = None if step is None else _comparable(step.kind, step.name, _request_of(step))
        if recorded is not None and digest(recorded) == digest(asked):
            return
        now = {"kind": kind, "name": name, "request": request}
        before = None if step is None else {"kind": step.kind, "name": step.name, "request": _request_of(step)}
        raise RecordingDiffers(
            f"Step {number} differs from the recording: {_how(before, now, recorded, asked)}",
            step=number,
            recorded=_shown(before),
            asked=_shown(now),
        )


def _fits(recorded: JsonValue, fact: str | float) -> bool:
    """Return whether a recorded fact can take the place of one: a text, or a time."""
    if isinstance(fact, str):
        return isinstance(recorded, str)
    return isinstance(recorded, int | float) and 0 <= recorded < LATEST


def _type_of(error: dict[str, Any] | None) -> str | None:
    return None if error is None else error["type"]


def _result_of(step: RecordedStep) -> StepResult:
    """Return the recorded result of a step, which costs nothing.

    Raises:
        MinionError: the step failed.
    """
    if step.error is not None:
        error = from_record(step.error)
        # A case is edited by hand, and other errors say something about this task.
        error = error if isinstance(error, OF_CALLS) else ToolError(error.message)
        error.retryable = False
        raise error
    return StepResult(step.output)


def _would_have_called(kind: str, name: str, request: JsonValue, outside: str) -> WouldHaveCalled:
    arguments = _arguments_of(request)
    shown = canonical(stable(arguments))
    call = f"{name} {shown if len(shown) <= 200 else shown[:200] + '…'}"
    if kind == "model_call":
        what = f"{name} with tools that its API runs"
        why = "They reach other systems: permit idempotent calls to have them."
    elif kind == "wait" and isinstance(request, dict) and "approval" in request:
        what, why = f"{call}, after an approval", "In the recording, no person decided about this call."
    elif kind == "wait":
        what, why = f"{call}, and waited", "The recording has no such signal."
    else:
        what, why = call, f"The tool is {outside}, and the recording has no such call, or no further one."
    return WouldHaveCalled(
        f"The agent would have called {what}. {why}",
        call={"kind": kind, "name": name, "effect": outside, "arguments": _shown(arguments)},
    )


def _ending(error: MinionError) -> Perform:
    def end(_: int) -> StepResult:
        raise error

    return end


def _never_made(_: int) -> StepResult:
    raise AssertionError("a trial asks no person")


def _identity(kind: str, name: str, request: JsonValue) -> str:
    """Return what calls with the same result have in common: a tool may be of another kind now."""
    of = "wait" if kind == "wait" else "call"
    return digest([of, name, _arguments_of(request)])


def _comparable(kind: str, name: str, request: JsonValue) -> JsonValue:
    """Return what must be the same in a replay. Another model, or another version of a function, is no other path."""
    if kind == "model_call":
        return [kind, _texts_as_json(_without_model(request))]
    return [kind, name, _arguments_of(request)]


def _without_model(request: JsonValue) -> JsonValue:
    """Return the request of a call without the name of the model that it is made instead of."""
    replaced = request.get("instead_of") if isinstance(request, dict) else None
    if not isinstance(replaced, dict):
        return request
    return {**request, "instead_of": {name: value for name, value in replaced.items() if name != "model"}}


def _arguments_of(request: JsonValue) -> JsonValue:
    """Return what the agent chose of a call, without the address of its tool or memory."""
    if not isinstance(request, dict):
        return request
    if "arguments" in request:
        return request["arguments"]
    if "approval" in request:
        return {"approval": request["approval"]}
    return {name: value for name, value in request.items() if name != "memory"}


def _request_of(step: RecordedStep) -> JsonValue:
    return step.task.input if step.task is not None else step.request


def _texts_as_json(value: JsonValue) -> JsonValue:
    """Return a request in which texts that are JSON are values: the order of their keys does not matter."""
    if isinstance(value, dict):
        return {name: _texts_as_json(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_texts_as_json(part) for part in value]
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return [parse(value)]
        except InvalidInput:
            return value
    return value


def _how(before: dict[str, Any] | None, now: dict[str, Any], recorded: JsonValue, asked: JsonValue) -> str:
    if before is None:
        return f"the recording has ended, and this run asks for {now['kind']} {now['name']!r}."
    if before["kind"] == now["kind"] and (before["name"] == now["name"] or now["kind"] == "model_call"):
        return f"{now['kind']} {now['name']!r} has another request ({first_difference(recorded, asked)})."
    return f"it has {before['kind']} {before['name']!r}, and this run asks for {now['kind']} {now['name']!r}."


def _shown(value: JsonValue) -> JsonValue:
    """Return a value for an error, or the beginning of its text if it is long."""
    written = json.dumps(value, ensure_ascii=False)
    return value if len(written) <= LONGEST_SHOWN else f"{written[:LONGEST_SHOWN]}…"
