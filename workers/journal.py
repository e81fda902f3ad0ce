"""The journal: every effect of a task is a step, and a finished step is never repeated.

A task that runs again asks for the same steps in the same order; finished steps are read back. A step that is not pure
is committed as started before its effect, and as finished before anything uses its result. The commit that begins the
next step can also finish the one before it. Pure steps are written together with the next write.
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, cast
from uuid import UUID

from shared.contracts.requests import Lane
from shared.contracts.strict_json import JsonValue, digest, first_difference
from shared.database.connections import persistently
from shared.errors import HistoryDiverged, MinionError, ToolError
from shared.tasks import batches, lifecycle, remote_calls
from shared.tasks.records import ChildEnd, KnownStep, StepRecord
from shared.tasks.remote_calls import RemoteCall
from workers.journal_writer import JournalWriter
from workers.outcomes import (
    OUTSIDE,
    Batched,
    Caller,
    ChildOutcome,
    ChildRequest,
    ClaimLost,
    Deferred,
    Interrupted,
    Postponed,
    Suspended,
    WaitRequest,
)
from workers.pricing import Reservation
from workers.steps import BatchedCall, DeferredCall, Kind, Outside, Perform, StepResult, begun, end_of, is_over

FORMAT = 1
WITH_BLOCKS = 2
"""Format of a task whose messages are blocks, or whose input has files: release 0.2 hands it back."""
draining = threading.Event()
"""Set when this process stops: tasks go back to the queue instead of beginning another step."""
ASKED_FOR_LATER = "The call asked to be retried later."
BATCH_HOURS = 24
"""Within this time the API answers the calls of a batch, or lets them expire."""
SAME_CALLS = (
    "A program must make the same calls whenever it runs again; the order of a set, for example, may differ. Replay "
    "the task to run it from its beginning, or from an earlier step."
)


@dataclass
class Journal(JournalWriter):
    """The steps of one task, either read back or run and recorded.

    Attributes:
        is_trial: most effects are not performed: see `workers.trial_journal`.
        known: steps of earlier executions by number, as returned by `minion_journal`.
        numbers: iterator of the next steps' numbers.
        last_number: the number that this journal took last.
        caller: the place in a program that makes the next call.
        lane: that of the task's model calls.
        deadline: of the task.
    """

    is_trial: ClassVar[bool] = False

    known: dict[int, KnownStep]
    _: KW_ONLY
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    last_number: int = 0
    caller: Caller = OUTSIDE
    lane: Lane = "direct"
    deadline: datetime | None = None

    def part(self, steps: int) -> Journal:
        """Return the journal for one of several parallel calls.

        Args:
            steps: number of steps of the call. Their numbers are reserved now, so they do not depend on timing.
        """
        part = copy.copy(self)
        part.numbers = iter([self.take() for _ in range(steps)])
        return part

    def upcoming(self) -> KnownStep | None:
        """Return the record of the next step from an earlier execution, if there is one."""
        number = self.take()
        self.numbers = itertools.chain([number], self.numbers)
        return self.known.get(number)

    def take(self) -> int:
        """Return the number of the next step."""
        self.last_number = next(self.numbers)
        return self.last_number

    def skip_to(self, number: int) -> None:
        """Leave the numbers up to this one to the calls of a program that has ended."""
        while (upcoming := self.take()) <= number:
            pass
        self.numbers = itertools.chain([upcoming], self.numbers)

    def matching(self, number: int, kind: str, name: str, request_hash: str, request: JsonValue) -> KnownStep | None:
        """Return the record of a step from an earlier execution, if there is one.

        Raises:
            HistoryDiverged: the journal holds a different step at this position.
        """
        known = self.known.get(number)
        if known is not None and known["request_hash"] != request_hash:
            raise self._diverged(known, number, kind, name, request)
        return known

    def call(
        self,
        kind: Kind,
        name: str,
        request: JsonValue,
        perform: Perform,
        *,
        effect: str,
        reserve: Callable[[], Reservation] | None = None,
        hashed: JsonValue = None,
        batched: BatchedCall | None = None,
        deferred: DeferredCall | None = None,
        outside: Outside | None = None,
    ) -> JsonValue:
        """Run a step, or read it back.

        Args:
            request: identifies the step; its canonical hash must be the same when the task runs again.
            perform: performs the effect; receives the step's number.
            effect: `pure`, `idempotent` or `unsafe`.
            reserve: returns the upper bound of the cost; only called if there is a budget or a standing budget, which
                holds that amount until the step is over.
            hashed: value to hash in place of the request, if the request holds texts whose keys have some order.
            batched: the same call for the batch lane, if the task's lane permits it.
            deferred: continues a call that `perform` has deferred.
            outside: by default the same as `effect`.

        Raises:
            Batched: the call is in the batch lane, and has no answer yet.
            Deferred: the server finishes the call later.
            BudgetExceeded: a budget of the task, or of one above it, has no room for the step.
            HistoryDiverged: the journal holds a different request at this position.
            Interrupted: the step is unsafe and was interrupted; its effect may or may not have happened.
            Cancelled: the task was cancelled in the meantime.
            Postponed: the call asks to be retried later, or a stop applies to the task.
            ClaimLost: stop, without writing anything.
            MinionError: the error raised by `perform`, which is recorded.
        """
        perform = self._effect_of(kind, name, request, perform, outside or cast(Outside, effect))
        number, request_hash = self.take(), digest([kind, name, request if hashed is None else hashed])
        known = self.matching(number, kind, name, request_hash, request)
        if known is not None and is_over(known):
            return end_of(known)
        remote = self._deferred(number, known) if deferred is not None else None
        if known is not None and known["status"] == "started" and effect == "unsafe" and not _continues(remote):
            raise Interrupted
        if draining.is_set():
            raise Postponed(0.0, "handed_back")
        started = begun(number, kind, name, effect, request_hash)
        if self.caller.program is not None:
            started["program"], started["line"] = self.caller.program, self.caller.line
        # The input is stored with the beginning, and may be large: the end does not send it again.
        stored: StepRecord = {**started, "input": request}
        if batched is not None and (answer := self._batched(stored, known, batched)) is not None:
            return self._perform(started, lambda _: batched.read(answer), None, paid=True)
        if deferred is not None and remote is not None:
            if remote.result is not None:
                return self._perform(started, lambda step: deferred.read(step, remote), None, paid=True)
            perform = self._repeating(deferred, remote)
        if effect == "pure" and not self.has_budget:
            self.commit()
            return self._perform(stored, perform, None)
        return self._perform(started, perform, self.begin(stored, reserve))

    def children(self, requests: Sequence[tuple[str, JsonValue]]) -> list[ChildOutcome] | Suspended:
        """Return the outcomes of sub-tasks, or the suspension that creates them.

        Args:
            requests: the agent's name and the input of each sub-task.

        Raises:
            HistoryDiverged: the journal holds different sub-tasks at this position.
        """
        wanted = [
            ChildRequest(self.take(), agent, digest(["subtask", agent, value]), value, self.caller)
            for agent, value in requests
        ]
        known = [self.matching(child.step, "subtask", child.agent, child.request_hash, child.input) for child in wanted]
        if wanted and known[0] is None:
            self._count_steps(wanted[0].step, len(wanted))
            return Suspended(wanted)
        return [self._child_outcome(child, step) for child, step in zip(wanted, known, strict=True) if step is not None]

    def wait(self, signal: str | None, seconds: float | None) -> JsonValue | Suspended:
        """Return the result of a wait, or the suspension that begins it.

        Raises:
            HistoryDiverged: the journal holds a different step at this position.
        """
        name = signal or "timer"
        number, request_hash = self.take(), digest(["wait", signal, seconds])
        known = self.matching(number, "wait", name, request_hash, {"signal": signal, "seconds": seconds})
        if known is not None and known["status"] == "finished":
            return known["output"]
        if known is None:
            self._count_steps(number)
        return Suspended(waits=[WaitRequest(number, signal, seconds, request_hash, caller=self.caller)])

    def approval(self, name: str, arguments: JsonValue, seconds: float | None = None) -> JsonValue | Suspended:
        """Return the arguments that a person approved for a call, or the suspension that requests the approval.

        Args:
            name: the call's name.
            seconds: time after which the request for approval lapses.

        Raises:
            HistoryDiverged: the journal holds a different step at this position.
            ToolError: the call was rejected, or was not decided in time.
        """
        number, request_hash = self.take(), digest(["approval", name, arguments])
        known = self.matching(number, "wait", name, request_hash, arguments)
        if known is None:
            self._count_steps(number)
        if known is None or known["status"] == "started":
            return Suspended(waits=[WaitRequest(number, None, seconds, request_hash, name, [arguments], self.caller)])
        decided = end_of(known)
        if "arguments" not in decided:
            late = ToolError(f"Nobody has approved {name!r} in time.", step=number)
            late.retryable = False
            raise late
        return decided["arguments"]

    def facts_of_program(self, number: int, facts: dict[str, Any]) -> dict[str, Any]:
        """Return the facts for a program that begins: a trial replaces them by recorded ones."""
        return facts

    def _effect_of(self, kind: Kind, name: str, request: JsonValue, perform: Perform, outside: Outside) -> Perform:
        """Return what a step does. Every effect of a task passes here before it begins."""
        return perform

    def _batched(self, started: StepRecord, known: KnownStep | None, batched: BatchedCall) -> str | None:
        """Return the answer to a call of the batch lane. None: the call must be made directly.

        A call that is in the lane stays there, whatever time is left.

        Raises:
            Batched: it has no answer yet; it is in the lane from now on, if it was not.
        """
        number, found = started["number"], None
        if known is not None and known["status"] == "started":
            found = persistently(batches.answer_to, self.task_id, number)
            answer = found[0] if found is not None else None
            if found is not None and answer is None:
                raise Batched
            if answer is not None and not batched.repeat(answer):
                return answer
        if found is None and self.lane == "auto" and (batched.fault or not self._has_time_for_batch()):
            return None
        self.begin(started, batched.reserve, {"step": number, "model": started["name"], "body": batched.body()})
        raise Batched

    def _deferred(self, number: int, known: KnownStep | None) -> RemoteCall | None:
        """Return the call of a step that its server was to finish later; None: there is none.

        Raises:
            Deferred: it is not finished yet.
        """
        if known is None:
            return None
        if known["status"] == "failed":
            # The step begins again: an earlier attempt must not be taken for this one.
            persistently(remote_calls.forget, self.task_id, self.claim, number)
            return None
        remote = persistently(remote_calls.of_step, self.task_id, number)
        if remote is not None and remote.is_open:
            raise Deferred
        return remote

    def _repeating(self, deferred: DeferredCall, remote: RemoteCall) -> Perform:
        """Return an effect that is recorded as repeated before it begins: an unsafe one is repeated once."""

        def repeat(step: int) -> StepResult:
            if not persistently(remote_calls.resume, self.task_id, self.claim, step):
                raise ClaimLost
            return deferred.repeat(step, remote)

        return repeat

    def _has_time_for_batch(self) -> bool:
        return self.deadline is None or self.deadline - datetime.now(UTC) >= timedelta(hours=BATCH_HOURS)

    def _perform(
        self,
        started: StepRecord,
        perform: Perform,
        reserved: Reservation | None,
        *,
        paid: bool = False,
    ) -> JsonValue:
        try:
            if not paid and (started["kind"] == "model_call" or started["effect"] == "unsafe"):
                self.refuse_if_stopped()
            result = perform(started["number"])
        except MinionError as error:
            self._fail(started, {**error.as_dict(), "retryable": error.retryable}, reserved, error)
            raise
        except Postponed as postponed:
            later = postponed.error.as_dict() if postponed.error else {"type": "snoozed", "message": ASKED_FOR_LATER}
            self._fail(started, {**later, "retryable": True}, reserved, postponed.error)
            raise
        except Deferred as deferred:
            self._defer(started, deferred)
            raise
        except Interrupted as interrupted:
            if interrupted.error is not None:
                # For the person who is asked to decide; the step itself stays `started`.
                self.keep({**started, "error": interrupted.error.as_dict()})
            raise
        self._finish(started, result, reserved)
        return result.output

    def _diverged(self, known: KnownStep, number: int, kind: str, name: str, request: JsonValue) -> HistoryDiverged:
        how, before, now = "", "", ""
        advice = "Replay the task to run it from its beginning, or from an earlier step."
        if (known["kind"], known["name"]) == (kind, name):
            recorded = persistently(lifecycle.step_input, self.task_id, number)
            how = f" with another input ({first_difference(recorded, request) or 'unknown how'})"
        if self.caller.program is not None:
            before, now = f" of line {known.get('line')} of the program", f" in line {self.caller.line}"
            advice = SAME_CALLS
        return HistoryDiverged(
            f"History diverged at step {number}: the journal holds {known['kind']} {known['name']!r}{before}, and this "
            f"run asks for {kind} {name!r}{now}{how}. {advice}",
            step=number,
        )

    def _child_outcome(self, child: ChildRequest, step: KnownStep) -> ChildOutcome:
        ended: ChildEnd = step.get("outcome") or {}
        return ChildOutcome(
            task_id=UUID(step["child_id"]),
            agent=child.agent,
            input=child.input,
            state=ended.get("state", "cancelled"),
            output=ended.get("output"),
            error=ended.get("error"),
        )


def _continues(remote: RemoteCall | None) -> bool:
    """Return whether a deferred call continues without a person's decision about its effect."""
    return remote is not None and remote.state != "sent"
