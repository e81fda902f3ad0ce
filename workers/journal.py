"""The journal: every effect of a task is a step, and a finished step is never repeated.

A task that runs again asks for the same steps in the same order; finished steps are read back. A step that is not pure
is committed as started before its effect, and as finished before anything uses its result. The commit that begins the
next step can also finish the one before it. Pure steps are written together with the next write.
"""

from __future__ import annotations

import copy
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Literal, cast
from uuid import UUID

import structlog
from sqlalchemy import Connection

from shared.contracts.requests import Lane
from shared.contracts.strict_json import JsonValue, digest, first_difference
from shared.database.connections import persistently
from shared.errors import Cancelled, HistoryDiverged, MinionError, ToolError, from_record
from shared.tasks import batches, budgets, lifecycle, remote_calls, stops
from shared.tasks.batches import BatchCall
from shared.tasks.records import Charge, ChildEnd, Flags, KnownStep, Reserve, StepRecord, Stop
from shared.tasks.remote_calls import RemoteCall
from shared.tasks.throttles import ModelRate, rates_in
from workers.followers import Followers
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
from workers.pricing import FREE, Reservation

log = structlog.get_logger(__name__)

Kind = Literal["model_call", "tool_call", "function_call", "wait"]
Outside = Literal["nothing", "pure", "idempotent", "unsafe"]
"""The effect of a step outside of its task, for a trial. `nothing`: the step is part of the agent's own work."""
FORMAT = 1
WITH_BLOCKS = 2
"""Format of a task whose messages are blocks, or whose input has files: release 0.2 hands it back."""
draining = threading.Event()
"""Set when this process stops: tasks go back to the queue instead of beginning another step."""
ASKED_FOR_LATER = "The call asked to be retried later."
BATCH_HOURS = 24
"""Within this time the API answers the calls of a batch, or lets them expire."""
FRESH_SECONDS = 0.5
"""Validity of a step's check for stops: a call that begins later, after a wait or a slow write, checks again."""


class Stopped(MinionError):
    """A stop applies to the task, so this call did not begin."""

    code = "stopped"
    retryable = True


@dataclass(frozen=True, slots=True)
class StepResult:
    """Result of a step. Tokens and micro-dollars are for model calls, CPU seconds for sandboxed functions.

    Attributes:
        cost_microdollars: None if unknown.
        cached: the origin of a result that another call left: its task, its step and its time.
    """

    output: JsonValue
    stdout: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    used_besides: dict[str, Any] = field(default_factory=dict)
    cost_microdollars: int | None = 0
    cpu_seconds: float = 0.0
    peak_memory_bytes: int = 0
    function_version_id: UUID | None = None
    cached: dict[str, JsonValue] | None = None


Perform = Callable[[int], StepResult]
"""Performs the effect of a step, whose number it receives."""


@dataclass(frozen=True, slots=True)
class BatchedCall:
    """A model call as it is made in the batch lane.

    Attributes:
        body: returns the body of the request, as JSON text.
        reserve: as for `Journal.call`.
        read: returns the result of the step from the answer's text.
        repeat: whether an answer refuses only the form of the request, which now has another one; it was not charged.
        fault: the reason why no further call can be made in a batch; None if it can. Lane `auto` then makes it at once.
    """

    body: Callable[[], str]
    reserve: Callable[[], Reservation]
    read: Callable[[str], StepResult]
    repeat: Callable[[str], bool]
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class DeferredCall:
    """A call that its server may finish later.

    Attributes:
        read: returns the result of the step with this number from the end of the server's task.
        repeat: repeats a plain call with a person's answers.
    """

    read: Callable[[int, RemoteCall], StepResult]
    repeat: Callable[[int, RemoteCall], StepResult]


@dataclass(frozen=True, slots=True)
class OpenProgram:
    """A program that has begun and not ended, also while its task waits.

    Attributes:
        record: of its step, as it began.
        facts: the program's inputs beside its code, the same whenever it runs again.
        calls: the journal of its calls.
    """

    record: StepRecord
    facts: dict[str, Any]
    calls: Journal


@dataclass
class Used:
    """Resources used by the steps of this execution."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost_microdollars: int = 0
    cpu_seconds: float = 0.0
    peak_memory_bytes: int = 0

    def add(self, result: StepResult) -> None:
        """Add a step's usage."""
        self.input_tokens += result.input_tokens
        self.output_tokens += result.output_tokens
        self.cost_microdollars += result.cost_microdollars or 0
        self.cpu_seconds += result.cpu_seconds
        self.peak_memory_bytes = max(self.peak_memory_bytes, result.peak_memory_bytes)


@dataclass
class Journal:
    """The steps of one task, either read back or run and recorded.

    Attributes:
        is_trial: most effects are not performed: see `workers.trial_journal`.
        known: steps of earlier executions by number, as returned by `minion_journal`.
        has_budget: a budget applies to the task, so no step begins before its reservation is written.
        reserves: a standing budget was found to apply to a call, so the next ones reserve their worst case at once.
        joins: after each step the next one begins without anything slow in between, or the caller commits. The end of a
            model call or of an idempotent step is then committed together with that beginning.
        unwritten: steps to be written together with the next write.
        numbers: iterator of the next steps' numbers.
        last_number: the number that this journal took last.
        caller: the place in a program that makes the next call.
        lock: protects everything but the numbers, because the parts of a journal (see `part`) are used in parallel.
        written_at: when the last write began, by the monotonic clock.
        rates: the limits of the model, if the last write began a call of one.
        lane: that of the task's model calls.
        deadline: of the task.
    """

    is_trial: ClassVar[bool] = False

    task_id: UUID
    claim: int
    known: dict[int, KnownStep]
    has_budget: bool = False
    reserves: bool = False
    joins: bool = False
    unwritten: list[StepRecord] = field(default_factory=list)
    used: Used = field(default_factory=Used)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    last_number: int = 0
    caller: Caller = OUTSIDE
    lock: threading.RLock = field(default_factory=threading.RLock)
    abandoned: threading.Event = field(default_factory=threading.Event)
    written_at: float = 0.0
    rates: list[ModelRate] | None = None
    lane: Lane = "direct"
    deadline: datetime | None = None
    followers: Followers = field(init=False)

    def __post_init__(self) -> None:
        self.followers = Followers(self.task_id)

    def part(self, steps: int) -> Journal:
        """Return the journal for one of several parallel calls.

        Args:
            steps: number of steps of the call. Their numbers are reserved now, so they do not depend on timing.
        """
        part = copy.copy(self)
        part.numbers = iter([self._take() for _ in range(steps)])
        return part

    def upcoming(self) -> KnownStep | None:
        """Return the record of the next step from an earlier execution, if there is one."""
        number = self._take()
        self.numbers = itertools.chain([number], self.numbers)
        return self.known.get(number)

    def refuse_if_stopped(self) -> None:
        """Check for stops again if the last check is not fresh.

        Raises:
            Postponed: a stop applies to the task.
        """
        if time.monotonic() - self.written_at < FRESH_SECONDS:
            return
        self.written_at = time.monotonic()
        if (stop := persistently(stops.stop_of, self.task_id)) is not None:
            raise _stopped(stop)

    def fresh_rates(self) -> list[ModelRate] | None:
        """Return the limits that the beginning of a model call returned; None if there was none, or not just now."""
        return self.rates if time.monotonic() - self.written_at < FRESH_SECONDS else None

    def commit(self) -> None:
        """Commit finished steps that wait for the next write, before something slow begins."""
        with self.lock:
            if any(step["status"] == "finished" and step["effect"] != "pure" for step in self.unwritten):
                self._write([])

    def write_kept(self) -> None:
        """Commit all steps that wait for the next write, pure ones too.

        Raises:
            Cancelled: the task was cancelled in the meantime.
            Postponed, ClaimLost: as for `call`.
        """
        with self.lock:
            if self.unwritten:
                self._write([])

    def abandon(self) -> None:
        """Stop all writes through this journal: calls that still run in other threads no longer own it."""
        self.abandoned.set()

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
        number, request_hash = self._take(), digest([kind, name, request if hashed is None else hashed])
        known = self._matching(number, kind, name, request_hash, request)
        if known is not None and known["status"] == "finished":
            return known["output"]
        if known is not None and known["status"] == "failed" and not known["error"].get("retryable"):
            raise _recorded_error(known["error"])
        remote = self._deferred(number, known) if deferred is not None else None
        if known is not None and known["status"] == "started" and effect == "unsafe" and not _continues(remote):
            raise Interrupted
        if draining.is_set():
            raise Postponed(0.0, "handed_back")
        started = _started(number, kind, name, effect, request_hash)
        started["input"] = request
        if self.caller.program is not None:
            started["program"], started["line"] = self.caller.program, self.caller.line
        if batched is not None and (answer := self._batched(started, known, batched)) is not None:
            del started["input"]
            return self._perform(started, lambda _: batched.read(answer), None, paid=True)
        if deferred is not None and remote is not None:
            if remote.result is not None:
                del started["input"]
                return self._perform(started, lambda step: deferred.read(step, remote), None, paid=True)
            perform = self._repeating(deferred, remote)
        reserved = None
        if effect != "pure" or self.has_budget:
            reserved = self._begin(started, reserve)
            # It is stored now, and may be large: the end of the step does not send it again.
            del started["input"]
        else:
            self.commit()
        return self._perform(started, perform, reserved)

    def children(self, requests: Sequence[tuple[str, JsonValue]]) -> list[ChildOutcome] | Suspended:
        """Return the outcomes of sub-tasks, or the suspension that creates them.

        Args:
            requests: the agent's name and the input of each sub-task.

        Raises:
            HistoryDiverged: the journal holds different sub-tasks at this position.
        """
        wanted = [
            ChildRequest(self._take(), agent, digest(["subtask", agent, value]), value, self.caller)
            for agent, value in requests
        ]
        known = [
            self._matching(child.step, "subtask", child.agent, child.request_hash, child.input) for child in wanted
        ]
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
        number, request_hash = self._take(), digest(["wait", signal, seconds])
        known = self._matching(number, "wait", name, request_hash, {"signal": signal, "seconds": seconds})
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
        number, request_hash = self._take(), digest(["approval", name, arguments])
        known = self._matching(number, "wait", name, request_hash, arguments)
        if known is None:
            self._count_steps(number)
        if known is None or known["status"] == "started":
            return Suspended(waits=[WaitRequest(number, None, seconds, request_hash, name, [arguments], self.caller)])
        if known["status"] == "failed":
            raise _recorded_error(known["error"])
        if "arguments" not in known["output"]:
            raise _not_retryable(ToolError(f"Nobody has approved {name!r} in time.", step=number))
        return known["output"]["arguments"]

    def begin_program(self, name: str, arguments: JsonValue, facts: dict[str, Any]) -> OpenProgram | JsonValue:
        """Begin the step of a program, whose calls are steps too; or return the output of one that has ended.

        The step is open until `end_program`. The program runs again when its task does, and its journal reads its calls
        back.

        Args:
            arguments: identify the step.
            facts: the program's other inputs; one that runs again receives the recorded ones.

        Raises:
            BudgetExceeded, HistoryDiverged, Cancelled, Postponed, ClaimLost: as for `call`.
            MinionError: the error with which the program ended.
        """
        number, request_hash = self._take(), digest(["tool_call", name, arguments])
        known = self._matching(number, "tool_call", name, request_hash, {"arguments": arguments})
        if known is not None and known["status"] == "finished":
            return known["output"]
        if known is not None and known["status"] == "failed":
            raise _recorded_error(known["error"])
        if draining.is_set():
            raise Postponed(0.0, "handed_back")
        started = _started(number, "tool_call", name, "idempotent", request_hash)
        started["program"] = number
        if known is None:
            facts = self._facts_of_program(number, facts)
            self._begin({**started, "input": {"arguments": arguments, **facts}}, None)
        else:
            recorded = persistently(lifecycle.step_input, self.task_id, number)
            facts = {name: recorded[name] for name in facts}
        calls = copy.copy(self)
        # A program may take long between two calls.
        calls.joins, calls.last_number, calls.caller = False, number, Caller(number)
        return OpenProgram(started, facts, calls)

    def end_program(self, program: OpenProgram, end: StepResult | MinionError) -> None:
        """Record the end of a program. It is written with the next step.

        Raises:
            HistoryDiverged: the journal has further calls of this program.
        """
        if later := self.later_call(program):
            number, line = program.record["number"], later.get("line")
            raise HistoryDiverged(
                f"History diverged at step {later['number']}: the program of step {number} ended, and when it ran "
                f"before, it called {later['name']!r} in line {line} then. {_SAME_CALLS}",
                step=later["number"],
            )
        ended: StepRecord = {**program.record, "finished_at": _now()}
        if isinstance(end, MinionError):
            self._keep({**ended, "status": "failed", "error": {**end.as_dict(), "retryable": False}})
        else:
            self._keep({**ended, "status": "finished", "output": end.output})

    def later_call(self, program: OpenProgram) -> KnownStep | None:
        """Return the next call of a program when it ran before; None if it has made as many this time."""
        own, last = program.record["number"], program.calls.last_number
        later = (step for _, step in sorted(self.known.items()) if step.get("program") == own and step["number"] > last)
        return next(later, None)

    def skip_to(self, number: int) -> None:
        """Leave the numbers up to this one to the calls of a program that has ended."""
        while (upcoming := self._take()) <= number:
            pass
        self.numbers = itertools.chain([upcoming], self.numbers)

    def _facts_of_program(self, number: int, facts: dict[str, Any]) -> dict[str, Any]:
        """Return the facts for a program that begins."""
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
        self._begin(started, batched.reserve, {"step": number, "model": started["name"], "body": batched.body()})
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

    def _begin(
        self, started: StepRecord, reserve: Callable[[], Reservation] | None, call: BatchCall | None = None
    ) -> Reservation | None:
        """Commit a step as started, with the reservation of its worst case where a budget applies.

        Args:
            call: the step's call, if it is in the batch lane.
        """
        reserved = reserve() if reserve is not None and (self.has_budget or self.reserves) else None
        asked = _worst_case(started["number"], reserved) if reserved or self.has_budget else None
        if not self._write([started], reserve=asked, call=call):
            self.reserves = True
            reserved = reserved or (reserve() if reserve is not None else FREE)
            while not self._write([started], reserve=_worst_case(started["number"], reserved), call=call):
                pass  # Another standing budget was added in between.
        return reserved

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
            failure = {**error.as_dict(), "retryable": error.retryable}
            self._keep({**started, "status": "failed", "error": failure, "finished_at": _now()})
            self._release(started["number"], reserved, error)
            raise
        except Postponed as postponed:
            later = postponed.error.as_dict() if postponed.error else {"type": "snoozed", "message": ASKED_FOR_LATER}
            self._keep({**started, "status": "failed", "error": {**later, "retryable": True}, "finished_at": _now()})
            self._release(started["number"], reserved, postponed.error)
            raise
        except Deferred as deferred:
            self._defer(started, deferred)
            raise
        except Interrupted as interrupted:
            if interrupted.error is not None:
                # For the person who is asked to decide; the step itself stays `started`.
                self._keep({**started, "error": interrupted.error.as_dict()})
            raise
        finished: StepRecord = {
            **started,
            "status": "finished",
            "output": result.output,
            "stdout": result.stdout,
            "usage": _usage(result),
            "cost_microdollars": result.cost_microdollars or 0,
            "function_version_id": str(result.function_version_id) if result.function_version_id else None,
            "finished_at": _now(),
        }
        with self.lock:
            self.used.add(result)
        # Budgets are settled at once.
        joins = self.joins and started["effect"] == "idempotent" and not (self.has_budget or self.reserves)
        if started["effect"] == "pure" or joins:
            self._keep(finished)
        else:
            self._write([finished], used=_charge(started["number"], reserved, result))
        return result.output

    def _defer(self, started: StepRecord, deferred: Deferred) -> None:
        """Commit the call of a step that its server finishes later, before anything waits for it.

        If the claim is lost, the server's task is left alone: another claim may get the same one for the same
        idempotency key.
        """
        with self.lock:
            if self.abandoned.is_set() or deferred.call is None:
                raise ClaimLost
            steps: list[StepRecord] = [*self.unwritten, {**started, "usage": deferred.usage or {}}]
            if not persistently(remote_calls.begin, self.task_id, self.claim, steps, deferred.call):
                raise ClaimLost
            self.unwritten.clear()
        self.followers.notify()

    def _count_steps(self, number: int, how_many: int = 1) -> None:
        """Sub-tasks and waits count as steps too, before the task is suspended for them."""
        if self.has_budget:
            self._write([], reserve={"step": number, "steps": how_many})

    def _release(self, number: int, reserved: Reservation | None, error: MinionError | None) -> None:
        """Release a failed call's reservation: an API that refuses a call charges nothing. If it is unknown whether the
        call was charged, the reserved amount stays spent.
        """
        if reserved is not None and not (error and error.detail.get("cost_unknown")):
            # Without the failed step, which the retry policy still has to examine.
            persistently(self._commit, [], used={"step": number, "tokens": 0, "microdollars": 0})

    def _keep(self, step: StepRecord) -> None:
        """Keep a step for the next write."""
        with self.lock:
            self.unwritten.append(step)

    def _write(
        self,
        steps: list[StepRecord],
        *,
        reserve: Reserve | None = None,
        used: Charge | None = None,
        call: BatchCall | None = None,
    ) -> bool:
        """Commit steps with the amounts that they reserve or have used of budgets: see `shared.tasks.budgets.spend`.
        Also the call of the last one, if that is in the batch lane.

        Return False if nothing was written, because the step must reserve its worst case.
        """
        with self.lock:
            if self.abandoned.is_set():
                raise ClaimLost
            self.written_at = time.monotonic()
            flags = persistently(self._commit, [*self.unwritten, *steps], reserve=reserve, used=used, call=call)
            self.rates = rates_in(flags["rates"]) if flags and "rates" in flags else None
            if flags is None:
                raise ClaimLost
            if "breach" in flags:
                # Nothing was written. Steps that have ended wait neither for an estimate nor for the task's suspension.
                self.commit()
            if stop := flags.get("stopped"):
                raise _stopped(stop)
            if flags.get("unreserved"):
                return False
            if breach := flags.get("breach"):
                raise budgets.exceeded(breach)
            self.unwritten.clear()
        self.followers.notify()
        if flags["cancel"]:
            raise Cancelled("Cancelled while it ran.")
        return True

    def _commit(
        self,
        connection: Connection,
        /,
        steps: list[StepRecord],
        *,
        reserve: Reserve | None = None,
        used: Charge | None = None,
        call: BatchCall | None = None,
    ) -> Flags | None:
        if call is not None:
            return batches.begin(connection, self.task_id, self.claim, steps, call, reserve)
        if reserve is None and used is None:
            return lifecycle.write_steps(connection, self.task_id, self.claim, steps, _model_that_begins(steps[-1]))
        return budgets.spend(connection, self.task_id, self.claim, steps, reserve=reserve, used=used)

    def _take(self) -> int:
        self.last_number = next(self.numbers)
        return self.last_number

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

    def _matching(self, number: int, kind: str, name: str, request_hash: str, request: JsonValue) -> KnownStep | None:
        known = self.known.get(number)
        if known is None or known["request_hash"] == request_hash:
            return known
        how = ""
        if (known["kind"], known["name"]) == (kind, name):
            recorded = persistently(lifecycle.step_input, self.task_id, number)
            how = f" with another input ({first_difference(recorded, request) or 'unknown how'})"
        before, now = "", ""
        advice = "Replay the task to run it from its beginning, or from an earlier step."
        if self.caller.program is not None:
            before, now = f" of line {known.get('line')} of the program", f" in line {self.caller.line}"
            advice = _SAME_CALLS
        raise HistoryDiverged(
            f"History diverged at step {number}: the journal holds {known['kind']} {known['name']!r}{before}, and this "
            f"run asks for {kind} {name!r}{now}{how}. {advice}",
            step=number,
        )


def _continues(remote: RemoteCall | None) -> bool:
    """Return whether a deferred call continues without a person's decision about its effect."""
    return remote is not None and remote.state != "sent"


_SAME_CALLS = (
    "A program must make the same calls whenever it runs again; the order of a set, for example, may differ. Replay "
    "the task to run it from its beginning, or from an earlier step."
)


def _started(number: int, kind: Kind, name: str, effect: str, request_hash: str) -> StepRecord:
    """Return the record of a step that begins now."""
    return {
        "number": number,
        "kind": kind,
        "name": name,
        "status": "started",
        "effect": effect,
        "request_hash": request_hash,
        "started_at": _now(),
    }


def _model_that_begins(step: StepRecord) -> str | None:
    return step["name"] if step["kind"] == "model_call" and step["status"] == "started" else None


def _stopped(stop: Stop) -> Postponed:
    return Postponed(None, "stopped", Stopped(f"It did not begin: {stops.describe(stop)}"))


def _worst_case(number: int, reserved: Reservation | None) -> Reserve:
    """The amounts that a step reserves in every budget before it begins."""
    if reserved is None:
        return {"step": number, "steps": 1}
    return {"step": number, "steps": 1, "tokens": reserved.tokens, "microdollars": reserved.microdollars}


def _charge(number: int, reserved: Reservation | None, result: StepResult) -> Charge | None:
    """The amounts that a step really used; if that is unknown, the reserved amounts stay spent."""
    if reserved is None:
        return None
    tokens = result.input_tokens + result.output_tokens
    unknown = tokens == 0 and result.cost_microdollars is None
    return {"step": number, "tokens": None if unknown else tokens, "microdollars": result.cost_microdollars}


def _recorded_error(error: dict[str, Any]) -> MinionError:
    """An error that an earlier execution received and recovered from."""
    again = from_record(error)
    again.retryable = False
    return again


def _not_retryable(error: ToolError) -> ToolError:
    error.retryable = False
    return error


def _usage(result: StepResult) -> dict[str, Any]:
    """Token counts by their names in OpenTelemetry's GenAI conventions; unknown ones are left out. Also the origin of a
    cached result.
    """
    cached = {
        "cache_read_input_tokens": result.cache_read_tokens,
        "cache_creation_input_tokens": result.cache_write_tokens,
    }
    counted = {name: tokens for name, tokens in cached.items() if tokens}
    tokens = {"input_tokens": result.input_tokens, "output_tokens": result.output_tokens}
    origin = {"cached": result.cached} if result.cached else {}
    return {**tokens, **counted, **result.used_besides, **origin}


def _now() -> str:
    return datetime.now(UTC).isoformat()
