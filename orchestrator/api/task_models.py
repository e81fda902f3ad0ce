"""Tasks, steps and executions as the API shows them. Times are ISO 8601 in UTC, money is micro-dollars."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from orchestrator.api.masking import ConversationId, Error, Labels, Payload, Payloads, PayloadSchema, PayloadText
from shared.access.actors import Key
from shared.access.roles import Permission
from shared.tasks.states import State
from shared.tasks.task_query import PRIVATE

BULK_LIMIT = 10_000

LabelName = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^:\x00]+$")]
LabelValue = Annotated[str, StringConstraints(max_length=1000, pattern=r"^[^\x00]*$")]
NewLabels = Annotated[dict[LabelName, LabelValue | None], Field(min_length=1, max_length=50)]


def check_private(labels: Iterable[str], key: Key) -> None:
    """Raise Forbidden if a key must not know the values of one of the labels."""
    if any(name.startswith(PRIVATE) for name in labels):
        key.require(Permission.PAYLOADS_READ)


class TaskSummary(BaseModel):
    """A task in a list: everything but what may be large."""

    id: UUID
    namespace: str
    agent: str | None = Field(description="Null until the task is routed, if it was submitted with messages only.")
    agent_version: int | None
    state: State
    capability: str | None = Field(description="The capability that it needs; also the name of its queue.")
    priority: int
    error: Error = Field(description="Why it failed: `type`, `message` and further facts.")
    error_fingerprint: str | None = Field(description="Equal for failures of the same kind.")
    conversation_id: ConversationId
    key: str | None
    labels: Labels
    parent_id: UUID | None
    root_id: UUID
    depth: int
    replay_of: UUID | None
    submitted_by: str | None
    claim: int = Field(description="How often a minion has claimed it.")
    attempts: int = Field(description="How many failures were charged to it.")
    losses: int = Field(description="How many workers were lost while they ran it.")
    worker_id: UUID | None
    open_waits: int = Field(description="Sub-tasks that it waits for.")
    wait_reason: str | None
    due_at: datetime | None = Field(description="When a scheduled or waiting task continues.")
    cancel_requested: bool
    deadline: datetime | None
    created_at: datetime
    queued_at: datetime | None
    updated_at: datetime
    finished_at: datetime | None
    output: Payload = Field(None, description="In lists only if the parameter `outputs` is set.")


class Task(TaskSummary):
    """A task with all its details."""

    input: Payload = None
    messages: Payloads
    origin_id: UUID = Field(description="The first task of its chain of replays; its own id if it is not a replay.")
    agent_version_id: UUID | None
    traceparent: str | None
    budget: dict[str, Any] | None = Field(
        description="The task's own budget: `on_breach`, and `limit`, `spent` and `reserved` (by running steps) "
        "of `tokens`, `dollars`, `steps` and `seconds`. Tasks below it count too."
    )
    routing: dict[str, Any] | None = Field(
        description="For messages that named no agent: what chose it (`by`: `text` or `setting`), and the `scores`."
    )


class Approval(BaseModel):
    """The approval of a call by one key."""

    by: str
    at: datetime
    reason: PayloadText = None


class Approvals(BaseModel):
    """The approvals of a call, and the number of different keys that must approve it."""

    people: int
    by: list[Approval]


class Step(BaseModel):
    """One journaled effect inside a task."""

    number: int
    kind: str
    name: str
    status: str
    effect: str
    request_hash: str
    claim: int
    input: Payload = None
    output: Payload = None
    error: Error
    stdout: PayloadText
    usage: dict[str, Any] | None = Field(
        description="Tokens of a model call. `cached`, of a result that another call left: its `task_id`, `step` and "
        "`created_at`."
    )
    cost_microdollars: int
    child_id: UUID | None
    function_version_id: UUID | None
    copied_from: UUID | None = Field(
        description="The task that made the step, if this task is a replay from a later step."
    )
    started_at: datetime
    finished_at: datetime | None
    approvals: Approvals | None = Field(
        None, description="Of a call with an approval policy: the keys that have approved it, and how many must."
    )
    program: int | None = Field(
        None, description="The step of the program that made this call. A program's own step has its own number."
    )
    line: int | None = Field(None, description="The line of the program that made this call.")


class Execution(BaseModel):
    """One claim of a task by one minion."""

    claim: int
    worker_id: UUID
    worker: str
    outcome: str
    error: Error
    cpu_seconds: float | None
    peak_memory_bytes: int | None
    input_tokens: int
    output_tokens: int
    cost_microdollars: int
    started_at: datetime
    finished_at: datetime | None


class Counts(BaseModel):
    """The number of tasks in each state. States without a task are left out."""

    by_state: dict[State, int]
    by_capability: dict[str, dict[State, int]]


class BulkItem(BaseModel):
    """One task of a bulk request; `created` is false if its idempotency key had been used before."""

    id: UUID
    created: bool


class BulkResult(BaseModel):
    """The accepted tasks, in the order of the request."""

    tasks: list[BulkItem]


class CancelRequest(BaseModel):
    """Reason for the cancellation of a task."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field("Cancelled over the API.", min_length=1, max_length=500)


class LabelRequest(BaseModel):
    """Labels to set."""

    model_config = ConfigDict(extra="forbid", strict=True)

    labels: NewLabels = Field(description="Values by name; null removes a label.")


class ReplayRequest(BaseModel):
    """Options of a replay."""

    model_config = ConfigDict(extra="forbid", strict=True)

    pinned: bool | None = Field(
        None,
        description="Run the agent version of the original task, not the active one. A replay from a step does, unless "
        "this is false: it then keeps the recorded steps, as long as the active version asks for the same.",
    )
    from_step: int | None = Field(
        None, description="Reuse the recorded steps before this one, and continue from there."
    )
    edited_output: Any = Field(None, description="With `from_step`: that step is kept too, with this output.")
    new_keys: bool = Field(
        False, description="Give the calls of the replay, and of all tasks below it, new idempotency keys."
    )

    @model_validator(mode="after")
    def _journal_fits(self) -> Self:
        if self.from_step is None and "edited_output" in self.model_fields_set:
            raise ValueError("edited_output needs from_step: the step whose output it is")
        return self


class SignalRequest(BaseModel):
    """Payload of a signal."""

    model_config = ConfigDict(extra="forbid")

    payload: Any = Field(None, description="JSON; the output of the waiting step contains it.")


class DecisionRequest(BaseModel):
    """A decision about a step that waits for a person."""

    model_config = ConfigDict(extra="forbid", strict=True)

    verdict: Literal["approve", "reject", "result", "again", "fail"]
    value: Any = Field(None, description="`approve`: other arguments; `result`: what the call returned.")
    reason: str | None = Field(None, min_length=1, max_length=1000)
    step: int | None = Field(None, ge=1, le=2**31 - 1, description="The number of the step that the decision is about.")
    proposal: str | None = Field(None, description="The `proposal` that `GET /v1/tasks/{task_id}/why` names.")

    @field_validator("proposal")
    @classmethod
    def _is_short_hash(cls, proposal: str | None) -> str | None:
        if proposal is not None and not re.fullmatch("[0-9a-f]{12}", proposal):
            raise ValueError("it must be the 12 hexadecimal digits that `minion why` shows")
        return proposal

    @model_validator(mode="after")
    def _names_what_was_seen(self) -> Self:
        if self.step is None and self.proposal is None:
            raise ValueError("a decision must name the step or the proposal that it is about; `minion why` shows both")
        return self


def _is_none(value: Any) -> bool:
    return value is None


class Decision(BaseModel):
    """A recorded decision."""

    step: int
    name: str
    proposal: str
    verdict: str
    value: Payload = Field(None, description="The approved arguments, or the result that was given for the step.")
    approvals: int | None = Field(
        None, description="Only with an approval policy: how many keys have approved these arguments.",
        exclude_if=_is_none,
    )  # fmt: skip
    people: int | None = Field(
        None, description="Only with an approval policy: how many different keys must approve them.",
        exclude_if=_is_none,
    )  # fmt: skip


class DecidedTask(Task):
    """A task after a decision."""

    decision: Decision


class AwaitedDecision(BaseModel):
    """A decision that a task waits for; a decision about it names the `step` and the `proposal`."""

    model_config = ConfigDict(populate_by_name=True)

    kind: Literal["approval", "answer"] = Field(
        description="`approval` of a call, or of an answer to a question; or `answer`: the outcome of an unsafe call "
        "that was interrupted."
    )
    step: int
    proposal: str
    name: str = Field(description="The tool, function or agent that is called.")
    server: str | None = Field(None, description="The MCP server that asks a question; null: there is no question.")
    question: PayloadText = Field(None, description="Its words.")
    value: Payload = Field(description="The proposed arguments or answer, or the request of the interrupted call.")
    value_schema: PayloadSchema = Field(
        None, alias="schema", description="JSON Schema of the arguments, answer or result; null: there is none."
    )
    approvals: int | None = Field(None, description="With an approval policy: how many keys have approved it.")
    people: int | None = Field(None, description="With an approval policy: how many must.")
    due_at: datetime | None


class AwaitedDecisions(BaseModel):
    """The decisions that a task waits for, by step."""

    items: list[AwaitedDecision]


class Why(BaseModel):
    """Explanation of the current state of a task."""

    task_id: UUID
    state: State
    reason: str = Field(description="For programs: `paused`, `unserved`, `in_line`, `backoff`, …")
    sentence: str = Field(description="For people.")
    todo: str | None = Field(description="What would let it continue.")
    facts: dict[str, Any]
