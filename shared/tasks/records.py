"""The JSON that the functions in `shared/tasks/sql/` take and return, as types."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict, final

from shared.contracts.requests import Lane
from shared.contracts.strict_json import JsonValue


class NewTask(TypedDict, total=False):
    """A task to insert, as `minion_accept` describes it. Ids and times are text.

    Attributes:
        validated: the agent version whose input schema the input was checked against. It decides about a canary.
        new_keys: a replay's calls get new idempotency keys.
        submitter_key: the id of the API key that submits it, or `bootstrap` for the administrator's.
        trial: its recording is stored in the same transaction: see `shared.tasks.trials`.
    """

    agent: str
    capability: str
    input: JsonValue
    messages: list[dict[str, Any]]
    namespace: str
    idempotency_key: str
    key: str
    labels: dict[str, str]
    priority: int
    run_at: str
    deadline: str
    conversation_id: str
    replay_of: str
    new_keys: bool
    agent_version_id: str
    traceparent: str
    submitted_by: str
    submitter_key: str
    unique_key: str
    unique_while: Literal["pending", "running"]
    budget: dict[str, Any]
    lane: Lane
    validated: str
    trial: bool


class Approver(TypedDict):
    """A key that decides, as `minion_decide_v2` reads it.

    Attributes:
        key: `shared.access.actors.Key.identity`.
        name, role: they count for a user without a key; those of a key are in its row.
        rules: the positions of the policy's rules that apply to the arguments.
        judged: the proposal that they were chosen for.
    """

    key: str
    name: str
    role: str
    rules: list[int]
    judged: str | None


Status = Literal["started", "finished", "failed"]
"""The status of a journal step."""


class StepRecord(TypedDict):
    """A journal step to write. Times are text; `error` has `retryable` beside the members of `MinionError.as_dict`.

    The `input` is needed when the step is first written, and so is the `program` that it is or that made it.
    """

    number: int
    kind: str
    name: str
    status: Status
    effect: str
    request_hash: str
    input: NotRequired[JsonValue]
    started_at: str
    finished_at: NotRequired[str]
    output: NotRequired[JsonValue]
    error: NotRequired[dict[str, Any]]
    stdout: NotRequired[str | None]
    usage: NotRequired[dict[str, Any]]
    cost_microdollars: NotRequired[int]
    function_version_id: NotRequired[str | None]
    program: NotRequired[int]
    line: NotRequired[int | None]


class ChildEnd(TypedDict, total=False):
    """The end of a sub-task."""

    state: str
    output: JsonValue
    error: dict[str, Any] | None


class KnownStep(TypedDict):
    """A step of an earlier execution, as `minion_journal` returns it.

    Attributes:
        child_id: the task of a `subtask` step.
        outcome: the end of that task.
        program: the program that made it, or that it is.
    """

    number: int
    kind: str
    name: str
    status: Status
    effect: str
    request_hash: str
    output: JsonValue
    error: NotRequired[dict[str, Any]]
    child_id: NotRequired[str]
    outcome: NotRequired[ChildEnd]
    program: NotRequired[int]
    line: NotRequired[int]


class StepRequest(TypedDict):
    """A step that a suspension begins, as `minion_suspend` reads it."""

    step: int
    name: str
    request_hash: str
    program: int | None
    line: int | None


class ChildRecord(StepRequest):
    """A sub-task to create."""

    request: NewTask


class WaitRecord(StepRequest):
    """A signal, timer or approval to wait for. `approval` is a list of one value, which may be null."""

    seconds: float | None
    signal: bool
    approval: list[JsonValue] | None


@final
class Claimed(TypedDict):
    """A claimed task, as `minion_claim` returns it: its row, and the journal of earlier executions.

    Ids and times are text, the secret `stream_key` is hexadecimal.
    """

    id: str
    root_id: str
    origin_id: str
    claim: int
    worker_id: str
    stream_key: str
    attempts: int
    agent_version_id: str
    agent_name: str
    queue: str
    namespace: str
    depth: int
    journal_format: int
    key: str | None
    input: JsonValue
    messages: list[Any] | None
    conversation_id: str | None
    deadline: str | None
    created_at: str | None
    budget_ids: list[str] | None
    history_before: str | None
    traceparent: str | None
    lane: Lane | None
    steps: list[KnownStep]


class StartRate(TypedDict):
    """A limit on how many tasks of a scope may start in a period."""

    scope: str
    name: str
    rate: int
    period_seconds: float


class Obstacle(TypedDict):
    """The reason why a task may not start now; more members depend on its kind (`minion_obstacle`).

    Attributes:
        kind: `turn`, `paused`, `max_running` or `rate`.
        rates: of the kind `rate`, with the namespace: the limiter knows whether they have room.
    """

    kind: str
    namespace: NotRequired[str]
    rates: NotRequired[list[StartRate]]


@final
class Refusal(TypedDict):
    """The answer to a claim of a task that may not start now."""

    refused: Obstacle


@final
class Breach(TypedDict):
    """A budget without room for a step, as `minion_breach` reports it.

    Attributes:
        budget: the task that has the budget.
        asked: None if the price of the step is unknown.
        step: the amounts that the step would have reserved.
        then: `fail` or `wait`.
    """

    budget: str
    agent: str
    what: Literal["tokens", "dollars", "steps", "seconds"]
    limit: float
    spent: float
    reserved: float
    asked: float | None
    step: dict[str, Any]
    at: str | None
    then: Literal["fail", "wait"]


@final
class StandingBreach(TypedDict):
    """A standing budget without room for a call, as `minion_standing_breach` reports it.

    Attributes:
        budget: the id of the standing budget.
        ends: the end of the current period.
        asked: None if the price of the call is unknown.
        reserved: what running calls may use.
        step: the amounts that the call would have reserved.
        then: `fail` or `wait`.
    """

    waits_for: Literal["standing_budget"]
    budget: str
    scope: str
    namespace: str | None
    name: str | None
    period: str
    ends: str
    what: Literal["tokens", "dollars"]
    limit: float
    spent: float
    reserved: float
    asked: float | None
    step: dict[str, Any]
    then: Literal["fail", "wait"]


class Stop(TypedDict):
    """A stop that applies to a task, as `minion_stop_of` returns it.

    Attributes:
        namespace: None if the whole installation is stopped.
        name: of the agent or the tenant key.
    """

    scope: Literal["installation", "namespace", "agent", "key"]
    namespace: str | None
    name: str | None
    reason: str | None
    created_at: str
    created_by: str | None


class ModelRates(TypedDict):
    """The limits of a model, as columns of the table `limits`; None: not limited."""

    rate: int | None
    period_seconds: float | None
    input_tokens: int | None
    input_tokens_seconds: float | None
    output_tokens: int | None
    output_tokens_seconds: float | None


class Flags(TypedDict):
    """The answer to a write of steps, which the minion must obey. With `breach`, nothing was written.

    Attributes:
        cancel: the task was asked to stop.
        rates: the limits of the model whose call begins, if the caller asked for them; None: there are none.
        breach: also present, for workers of release 0.2, with `stopped` and `unreserved`.
        unreserved: a standing budget applies to the model call: it must reserve its worst case.
    """

    cancel: bool
    rates: NotRequired[ModelRates | None]
    breach: NotRequired[Breach | StandingBreach]
    stopped: NotRequired[Stop]
    unreserved: NotRequired[bool]


class Reserve(TypedDict):
    """The most that a step may use of every budget above its task; `microdollars` is None if its price is unknown."""

    step: int
    steps: int
    tokens: NotRequired[int]
    microdollars: NotRequired[int | None]


class Charge(TypedDict):
    """The amounts that a step has used of every budget above its task; None for a value that is unknown."""

    step: int
    tokens: int | None
    microdollars: int | None


class ExecutionResult(TypedDict, total=False):
    """The result of an execution, as `minion_close_execution` and `minion_settle` read it.

    Attributes:
        steps: journal steps that are not written yet.
        messages: those that a successful task adds to its conversation.
        error: as `MinionError.as_dict` gives it.
        peak_memory_bytes: of the process and of its sandboxed functions, whichever is larger.
    """

    steps: list[StepRecord]
    output: JsonValue
    error: dict[str, Any]
    messages: list[dict[str, Any]]
    cpu_seconds: float
    peak_memory_bytes: int
    input_tokens: int
    output_tokens: int
    cost_microdollars: int
