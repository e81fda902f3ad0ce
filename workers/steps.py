"""Steps of a journal: their effects, their results and their records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

from shared.contracts.strict_json import JsonValue
from shared.errors import from_record
from shared.tasks.records import KnownStep, StepRecord
from shared.tasks.remote_calls import RemoteCall
from workers.pricing import Reservation

Kind = Literal["model_call", "tool_call", "function_call", "wait"]
Outside = Literal["nothing", "pure", "idempotent", "unsafe"]
"""The effect of a step outside of its task, for a trial. `nothing`: the step is part of the agent's own work."""


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


def begun(number: int, kind: Kind, name: str, effect: str, request_hash: str) -> StepRecord:
    """Return the record of a step that begins now."""
    return {
        "number": number,
        "kind": kind,
        "name": name,
        "status": "started",
        "effect": effect,
        "request_hash": request_hash,
        "started_at": now(),
    }


def finished(step: StepRecord, result: StepResult) -> StepRecord:
    """Return the record of a step that ends now with a result."""
    return {
        **step,
        "status": "finished",
        "output": result.output,
        "stdout": result.stdout,
        "usage": _usage(result),
        "cost_microdollars": result.cost_microdollars or 0,
        "function_version_id": str(result.function_version_id) if result.function_version_id else None,
        "finished_at": now(),
    }


def failed(step: StepRecord, error: dict[str, Any]) -> StepRecord:
    """Return the record of a step that ends now with an error."""
    return {**step, "status": "failed", "error": error, "finished_at": now()}


def is_over(step: KnownStep) -> bool:
    """Return whether a step of an earlier execution is read back; one that may be retried is not."""
    return step["status"] == "finished" or (step["status"] == "failed" and not step["error"].get("retryable"))


def end_of(step: KnownStep) -> JsonValue:
    """Return the output of a step that an earlier execution ended.

    Raises:
        MinionError: the error with which it ended, and from which that execution recovered.
    """
    if step["status"] == "finished":
        return step["output"]
    error = from_record(step["error"])
    error.retryable = False
    raise error


def now() -> str:
    """Return the time as the journal holds it."""
    return datetime.now(UTC).isoformat()


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
