"""The journal: every effect of a task is a step, and a step that is finished is never made again.

A task that runs again asks for the same steps in the same order; finished ones are read back. A step that is not
pure is committed as started before it is made, and as finished before anything uses its result. Pure steps ride
along with the next write.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

import structlog

from shared import budgets, lifecycle
from shared.database import persist, statement
from shared.errors import Cancelled, HistoryDiverged, MinionError, ToolError
from shared.json_values import JsonValue, digest
from workers.budget import Reservation
from workers.outcomes import ChildOutcome, ChildRequest, ClaimLost, Interrupted, Snoozed, Suspended, WaitRequest

log = structlog.get_logger(__name__)

Kind = Literal["model_call", "tool_call", "function_call"]
FORMAT = 1


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step produced. Tokens and micro-dollars are for model calls, CPU seconds for sandboxed functions."""

    output: JsonValue
    stdout: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cost_microdollars: int = 0
    cpu_seconds: float = 0.0
    peak_memory_bytes: int = 0
    function_version_id: UUID | None = None


@dataclass
class Journal:
    """The steps of one task, read back or run and recorded.

    Attributes:
        known: steps of earlier executions, by number, as `minion_journal` gives them.
        has_budget: a budget holds for the task, so that no step begins before it has been written down there.
        unwritten: pure steps that ride along with the next write.
    """

    task_id: UUID
    claim: int
    known: dict[int, dict[str, Any]]
    has_budget: bool = False
    next_number: int = 1
    unwritten: list[dict[str, Any]] = field(default_factory=list)
    input_tokens: int = 0
    output_tokens: int = 0
    cost_microdollars: int = 0
    cpu_seconds: float = 0.0
    peak_memory_bytes: int = 0

    def call(
        self,
        kind: Kind,
        name: str,
        request: JsonValue,
        perform: Callable[[int], StepResult],
        *,
        effect: str,
        reserve: Reservation | None = None,
    ) -> JsonValue:
        """Makes a step, or reads it back.

        Args:
            request: what is asked; its canonical hash must be the same when the task runs again.
            perform: makes the effect; receives the step's number.
            effect: `pure`, `idempotent` or `unsafe`.
            reserve: what it may cost at most; held of every budget above the task until the step is finished.

        Raises:
            BudgetExceeded: a budget of the task, or of one above it, has no room for the step.
            HistoryDiverged: the journal holds another request at this place.
            Interrupted: the step is unsafe and was interrupted; whether it happened is not known.
            Cancelled: the task was cancelled meanwhile.
            ClaimLost: stop, without writing anything.
            MinionError: what `perform` raised; it is recorded.
        """
        number, request_hash = self._take(), digest([kind, name, request])
        known = self._matching(number, kind, name, request_hash)
        if known is not None and known["status"] == "finished":
            return known["output"]
        if known is not None and known["status"] == "failed" and not known["error"].get("retryable"):
            raise _recorded(known["error"])
        if known is not None and known["status"] == "started" and effect == "unsafe":
            raise Interrupted
        step = {
            "number": number,
            "kind": kind,
            "name": name,
            "effect": effect,
            "request_hash": request_hash,
            "input": request,
            "started_at": _now(),
        }
        if effect != "pure" or self.has_budget:
            self._write([{**step, "status": "started"}], reserve=_worst_case(number, reserve))
        return self._perform(step, perform, reserve)

    def children(self, requests: Sequence[tuple[str, JsonValue]]) -> list[ChildOutcome] | Suspended:
        """The outcomes of sub-tasks, or the suspension that creates them.

        Args:
            requests: for each sub-task the agent's name and its input.

        Raises:
            HistoryDiverged: the journal holds other sub-tasks at this place.
        """
        wanted = [
            ChildRequest(self._take(), agent, digest(["subtask", agent, value]), value) for agent, value in requests
        ]
        known = [self._matching(child.step, "subtask", child.agent, child.request_hash) for child in wanted]
        if wanted and known[0] is None:
            self._count_steps(wanted[0].step, len(wanted))
            return Suspended(wanted)
        return [_child_outcome(child, step) for child, step in zip(wanted, known, strict=True) if step is not None]

    def wait(self, signal: str | None, seconds: float | None) -> JsonValue | Suspended:
        """What a wait brought, or the suspension that begins it.

        Raises:
            HistoryDiverged: the journal holds something else at this place.
        """
        name = signal or "timer"
        number, request_hash = self._take(), digest(["wait", signal, seconds])
        known = self._matching(number, "wait", name, request_hash)
        if known is not None and known["status"] == "finished":
            return known["output"]
        if known is None:
            self._count_steps(number)
        return Suspended(waits=[WaitRequest(number, signal, seconds, request_hash)])

    def approval(self, name: str, arguments: JsonValue, seconds: float | None = None) -> JsonValue | Suspended:
        """The arguments that somebody has approved for a call, or the suspension that asks for it.

        Args:
            name: of the call.
            seconds: until nobody need answer any more.

        Raises:
            HistoryDiverged: the journal holds something else at this place.
            ToolError: somebody has rejected the call, or nobody has answered in time.
        """
        number, request_hash = self._take(), digest(["approval", name, arguments])
        known = self._matching(number, "wait", name, request_hash)
        if known is None:
            self._count_steps(number)
        if known is None or known["status"] == "started":
            return Suspended(waits=[WaitRequest(number, None, seconds, request_hash, name, arguments)])
        if known["status"] == "failed":
            raise _recorded(known["error"])
        if "arguments" not in known["output"]:
            raise _final(ToolError(f"Nobody has approved {name!r} in time.", step=number))
        return known["output"]["arguments"]

    def _perform(
        self, step: dict[str, Any], perform: Callable[[int], StepResult], reserve: Reservation | None
    ) -> JsonValue:
        try:
            result = perform(step["number"])
        except MinionError as error:
            failure = {**error.as_dict(), "retryable": error.retryable}
            self.unwritten.append({**step, "status": "failed", "error": failure, "finished_at": _now()})
            self._release(step["number"], reserve, error.detail.get("cost_unknown", False))
            raise
        except Snoozed as snoozed:
            later = {"type": "snoozed", "message": "The call asked to be made again later.", "retryable": True}
            self.unwritten.append({**step, "status": "failed", "error": later, "finished_at": _now()})
            self._release(step["number"], reserve, snoozed.cost_unknown)
            raise
        self._count(result)
        finished = {
            **step,
            "status": "finished",
            "output": result.output,
            "stdout": result.stdout,
            "usage": {"input_tokens": result.input_tokens, "output_tokens": result.output_tokens},
            "cost_microdollars": result.cost_microdollars,
            "function_version_id": str(result.function_version_id) if result.function_version_id else None,
            "finished_at": _now(),
        }
        if step["effect"] == "pure":
            self.unwritten.append(finished)
        else:
            self._write([finished], used=_used(step["number"], reserve, result))
        return result.output

    def _count_steps(self, number: int, how_many: int = 1) -> None:
        """Sub-tasks and waits count as steps too, before the task is suspended for them."""
        if self.has_budget:
            self._write([], reserve={"step": number, "steps": how_many})

    def _release(self, number: int, reserve: Reservation | None, unknown: bool) -> None:
        """Gives back what a failed call had reserved: an API that refuses a call charges nothing for it. Where nobody
        knows whether it was charged, what was reserved stays spent.
        """
        if self.has_budget and reserve is not None and not unknown:
            # Without the failed step, which the retry policy has yet to look at.
            persist(lambda: self._commit([], None, {"step": number, "tokens": 0, "microdollars": 0}))

    def _count(self, result: StepResult) -> None:
        self.input_tokens += result.input_tokens
        self.output_tokens += result.output_tokens
        self.cost_microdollars += result.cost_microdollars
        self.cpu_seconds += result.cpu_seconds
        self.peak_memory_bytes = max(self.peak_memory_bytes, result.peak_memory_bytes)

    def _write(
        self, steps: list[dict[str, Any]], *, reserve: dict[str, Any] | None = None, used: dict[str, Any] | None = None
    ) -> None:
        flags = persist(lambda: self._commit([*self.unwritten, *steps], reserve, used))
        if flags is None:
            raise ClaimLost
        if flags.get("breach"):
            raise budgets.exceeded(flags["breach"])
        self.unwritten = []
        if flags["cancel"]:
            raise Cancelled("Cancelled while it ran.")

    def _commit(
        self, steps: list[dict[str, Any]], reserve: dict[str, Any] | None, used: dict[str, Any] | None
    ) -> dict[str, Any] | None:
        with statement() as connection:
            if self.has_budget:
                return budgets.spend(connection, self.task_id, self.claim, steps, reserve=reserve, used=used)
            return lifecycle.write_steps(connection, self.task_id, self.claim, steps)

    def _take(self) -> int:
        number, self.next_number = self.next_number, self.next_number + 1
        return number

    def _matching(self, number: int, kind: str, name: str, request_hash: str) -> dict[str, Any] | None:
        known = self.known.get(number)
        if known is None or known["request_hash"] == request_hash:
            return known
        raise HistoryDiverged(
            f"History diverged at step {number}: the journal holds {known['kind']} {known['name']!r}, and this run "
            f"asks for {kind} {name!r}{' with another input' if known['name'] == name else ''}. "
            "Replay the task to run it from its beginning.",
            step=number,
        )


def _worst_case(number: int, reserve: Reservation | None) -> dict[str, Any]:
    """What a step takes of every budget before it begins."""
    return {"step": number, "steps": 1, **(asdict(reserve) if reserve else {})}


def _used(number: int, reserve: Reservation | None, result: StepResult) -> dict[str, Any] | None:
    """What it has really used. A cost of 0 for tokens that were used means that nobody knows the price."""
    if reserve is None:
        return None
    tokens = result.input_tokens + result.output_tokens
    unknown = tokens > 0 and result.cost_microdollars == 0
    return {"step": number, "tokens": tokens, "microdollars": None if unknown else result.cost_microdollars}


def _child_outcome(child: ChildRequest, step: dict[str, Any]) -> ChildOutcome:
    ended = step.get("outcome") or {}
    return ChildOutcome(
        task_id=UUID(step["child_id"]),
        agent=child.agent,
        input=child.input,
        state=ended.get("state", "cancelled"),
        output=ended.get("output"),
        error=ended.get("error"),
    )


def _recorded(error: dict[str, Any]) -> ToolError:
    """An error that an earlier execution got and went on from."""
    again = ToolError(
        error["message"], **{name: value for name, value in error.items() if name not in ("type", "message")}
    )
    again.retryable = False
    return again


def _final(error: ToolError) -> ToolError:
    error.retryable = False
    return error


def _now() -> str:
    return datetime.now(UTC).isoformat()
