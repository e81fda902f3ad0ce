"""Transitions of a task: one Python name for each function in `shared/tasks/sql/`, one round trip each.

Nothing else writes `task_status`. A write by a minion is fenced by its claim number: `None` means that the claim
is lost and that the minion must stop without any further write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Any, cast
from uuid import UUID

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TEXT

from shared.contracts.key_order import in_order, order_of, ordered, with_order
from shared.tasks.records import (
    Approver,
    ChildRecord,
    Claimed,
    ExecutionResult,
    Flags,
    KnownStep,
    NewTask,
    Refusal,
    StepRecord,
    WaitRecord,
)
from shared.tasks.states import State
from shared.tasks.throttles import RATES_OF_MODEL


@dataclass(frozen=True, slots=True)
class Dispatched:
    """A task whose message is sent to the broker. Limits are seconds.

    Attributes:
        has_model: its agent is one of type `agent`, which calls a model.
        version_id: the version of its agent; None if the caller does not need it.
    """

    task_id: UUID
    claim: int
    queue: str
    agent_name: str
    soft_time_limit: int
    time_limit: int
    priority: int
    has_model: bool = False
    version_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """An accepted task; `created` is False if its idempotency key had been used before."""

    task_id: UUID
    created: bool


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision, and the current state of the task.

    Attributes:
        proposal: the short hash that identifies the proposal.
        value: the approved arguments, or the result that was set for the step.
        approvals: with an approval policy, the number of keys that have approved; `people` must.
    """

    state: State
    step: int
    name: str
    proposal: str
    verdict: str
    value: Any
    approvals: int | None
    people: int | None


ACCEPT = text("SELECT task_id, created FROM minion_accept_many(:requests)").bindparams(
    bindparam("requests", type_=JSONB)
)
ACCEPT_NOW = text("SELECT * FROM minion_accept_now(:request, :expected, :lease)").bindparams(
    bindparam("request", type_=JSONB)
)
CHECK_REACH = text("SELECT minion_check_reach(:task, :agents)").bindparams(
    bindparam("task", type_=JSONB), bindparam("agents", type_=ARRAY(TEXT))
)
ROUTE = text("SELECT minion_route_by(:task, :version, :queue, :decision)").bindparams(
    bindparam("decision", type_=JSONB(none_as_null=True))
)
REPLAY_FROM = text("SELECT minion_replay_from(:request, :source, :first, :edited, :who)").bindparams(
    bindparam("request", type_=JSONB), bindparam("edited", type_=JSONB(none_as_null=True))
)
REJECT = text("SELECT minion_reject(:task, :error)").bindparams(bindparam("error", type_=JSONB))
DISPATCH = text("SELECT * FROM minion_dispatch_v2(:lease, :window, :windows)").bindparams(
    bindparam("windows", type_=JSONB)
)
REPUBLISH = text("SELECT * FROM minion_republish(:lease, :patience, :empty, :most)")
VERSIONS = text(
    "SELECT t.id, v.id AS version_id, v.type = 'agent' AS has_model "
    "FROM tasks t JOIN agent_versions v ON v.id = t.agent_version_id WHERE t.id = ANY (:tasks)"
)
QUEUES_IN_USE = text(
    "SELECT DISTINCT capability FROM task_status "
    "WHERE state = 'queued' AND published_at < now() - CAST(:patience AS interval)"
)
WAKE_DUE = text("SELECT minion_wake_due(:most)")
CLAIM = text("SELECT minion_claim(:task, :claim, :worker, :granted)")
CLAIM_PACK = text("SELECT minion_claim_pack(:pack, :worker)").bindparams(bindparam("pack", type_=JSONB))
FINISH_PACK = text("SELECT minion_finish_pack(CAST(:ended AS jsonb))")
UNQUEUE = text("SELECT minion_unqueue(:task, :claim)")
HOLD = text("SELECT minion_hold(:task, :claim, :scope, :name, :delay)")
WRITE_STEPS = text("SELECT minion_write_steps(:task, :claim, :steps)").bindparams(bindparam("steps", type_=JSONB))
# A cancelled task does not begin the last step: only the others are written.
END_AND_BEGIN = (
    "SELECT minion_write_steps(:task, :claim, CASE WHEN cancel_requested AND jsonb_array_length(:steps) > 1 "
    "THEN :steps - -1 ELSE :steps END){} FROM task_status WHERE task_id = :task"
)
BEGIN_STEP = text(END_AND_BEGIN.format("")).bindparams(bindparam("steps", type_=JSONB))
# With the limits of the model.
BEGIN_MODEL_CALL = text(
    END_AND_BEGIN.format(
        " || jsonb_build_object('rates', (SELECT to_jsonb(l) FROM "  # noqa: S608
        f"({RATES_OF_MODEL.format('task_status.namespace')}) l))"
    )
).bindparams(bindparam("steps", type_=JSONB))
FINISH = text("SELECT minion_finish(:task, :claim, :state, :result)").bindparams(bindparam("result", type_=JSONB))
RELEASE = text("SELECT minion_release(:task, :claim, :how, :charged, :delay, :result, :worker)").bindparams(
    bindparam("result", type_=JSONB)
)
SUSPEND = text("SELECT minion_suspend(:task, :claim, :result, :children, :waits)").bindparams(
    bindparam("result", type_=JSONB), bindparam("children", type_=JSONB), bindparam("waits", type_=JSONB)
)
SNOOZE = text("SELECT minion_snooze(:task, :claim, :result, :delay, :reason)").bindparams(
    bindparam("result", type_=JSONB)
)
SIGNAL = text("SELECT minion_signal_v2(:task, :name, :payload, :order)").bindparams(
    bindparam("payload", type_=JSONB), bindparam("order", type_=JSONB(none_as_null=True))
)
ASK = text("SELECT minion_ask(:task, :claim, :result)").bindparams(bindparam("result", type_=JSONB))
DECIDE = text(
    "SELECT minion_decide_v2(:task, :step, :proposal, :verdict, :value, :order, :reason, :who, :approver)"
).bindparams(*(bindparam(name, type_=JSONB(none_as_null=True)) for name in ("value", "order", "approver")))
IS_CANCELLED = text(
    "SELECT cancel_requested FROM task_status WHERE task_id = :task AND claim = :claim AND state = 'running'"
)
STEP_INPUT = text(
    "SELECT CASE WHEN s.kind = 'subtask' THEN k.input WHEN s.input ? 'approval' THEN s.input->'approval' "
    "ELSE s.input END AS input, "
    "CASE WHEN s.kind = 'subtask' THEN k.input_order ELSE s.input_order END AS input_order "
    "FROM steps s LEFT JOIN tasks k ON k.id = s.child_id WHERE s.task_id = :task AND s.number = :number"
)
HEAL_CLOCK = text("SELECT minion_heal_clock()")
HEAL_TURNS = text("SELECT minion_heal_turns(:most)")
HEAL_WAITS = text("SELECT woken, last FROM minion_heal_waits(:after, :most)")
END_TREE = text("SELECT minion_end_tree(:task, :state, :error)").bindparams(bindparam("error", type_=JSONB))


def accept(connection: Connection, tasks: Sequence[NewTask]) -> list[Accepted]:
    """Insert tasks, all or none, in the caller's transaction.

    Raises:
        MinionError: the first task that is refused, and why.
    """
    values = {"requests": [with_order(task, "input") for task in tasks]}
    return [Accepted(task_id, created) for task_id, created in connection.execute(ACCEPT, values)]


def accept_now(
    connection: Connection, task: NewTask, *, lease: float, expected: UUID | None = None
) -> tuple[Accepted, Dispatched | None] | None:
    """Insert one task, and queue it if a slot is free for it: the caller must then publish its message.

    Args:
        expected: the version that the agent must still have, for a task that was checked against one read earlier.

    Returns:
        the task, and its message if it is queued; None if the agent has another version by now.

    Raises:
        MinionError: the task is refused.
    """
    values = {"request": with_order(task, "input"), "expected": expected, "lease": timedelta(seconds=lease)}
    row = connection.execute(ACCEPT_NOW, values).mappings().one_or_none()
    if row is None:
        return None
    message = {name: value for name, value in row.items() if name != "created"}
    return Accepted(row["task_id"], row["created"]), None if row["claim"] is None else Dispatched(**message)


def check_reach(connection: Connection, task: NewTask, agents: Sequence[str]) -> None:
    """Refuse a task that would join a conversation of other agents, or whose keys one of their tasks has.

    Args:
        agents: the only agents that the submitter may use; empty: all.

    Raises:
        Conflict: it would.
    """
    if agents:
        names = {name: task.get(name) for name in ("namespace", "conversation_id", "idempotency_key", "unique_key")}
        connection.execute(CHECK_REACH, {"task": names, "agents": list(agents)})


def replay_from(
    connection: Connection,
    new: NewTask,
    source: UUID,
    first: int,
    edited: dict[str, Any] | None,
    *,
    who: str,
    approver: Approver | None = None,
) -> UUID:
    """Insert a task that continues an ended one, with a copy of its journal. Return the new task.

    Args:
        new: the new task; it pins the versions that ran then.
        first: the first step that is executed; all earlier ones must be readable.
        edited: `{"output": …}` if step `first` is copied too, with this output.
        who: the author of an edit, for the record.
        approver: the key of the author, if the edited step is an approval.

    Raises:
        Forbidden: one key alone may not set what an approval policy protects.
        NotFound: the task is gone.
        Conflict: its journal has the format of another release.
        MinionError: the agent no longer accepts it.
    """
    values = {
        "request": with_order(new, "input"),
        "source": source,
        "first": first,
        "edited": edited and {**with_order(edited, "output"), "approver": approver},
        "who": who,
    }
    return UUID(str(connection.scalar(REPLAY_FROM, values)))


def route(
    connection: Connection, task: UUID, version: UUID, queue: str, decision: dict[str, Any] | None = None
) -> bool:
    """Pin the agent version of a pending task and set its queue; return False if it is no longer pending.

    Args:
        decision: how the agent was chosen for a message that named none, with the scores; for the record.
    """
    values = {"task": task, "version": version, "queue": queue, "decision": decision}
    return bool(connection.scalar(ROUTE, values))


def reject(connection: Connection, task: UUID, error: dict[str, Any]) -> bool:
    """Fail a pending task before it first runs; return False if it is no longer pending."""
    return bool(connection.scalar(REJECT, {"task": task, "error": error}))


def dispatch(
    connection: Connection, *, lease: float, window: int, windows: Mapping[str, int] = MappingProxyType({})
) -> list[Dispatched]:
    """Move pending tasks to the queued state, as far as each capability's window has room.

    Args:
        window: the smallest window, in tasks.
        windows: larger windows of some capabilities.
    """
    limits = {"lease": timedelta(seconds=lease), "window": window, "windows": {**windows}}
    return [Dispatched(**row) for row in connection.execute(DISPATCH, limits).mappings()]


def stalled_queues(connection: Connection, *, patience: float) -> list[str]:
    """Return capabilities with tasks that were published more than `patience` seconds ago and are still queued."""
    return list(connection.scalars(QUEUES_IN_USE, {"patience": timedelta(seconds=patience)}))


def republish(
    connection: Connection, *, lease: float, patience: float, empty_queues: list[str], limit: int = 1000
) -> list[Dispatched]:
    """Return queued tasks whose messages are presumed lost, to be published again under the same claim.

    Args:
        empty_queues: the queues that hold no message in the broker.
    """
    limits = {
        "lease": timedelta(seconds=lease),
        "patience": timedelta(seconds=patience),
        "empty": empty_queues,
        "most": limit,
    }
    rows = connection.execute(REPUBLISH, limits).mappings().all()
    tasks = [row["task_id"] for row in rows]
    found = connection.execute(VERSIONS, {"tasks": tasks}) if tasks else ()
    versions = {task: {"version_id": version, "has_model": has_model} for task, version, has_model in found}
    return [Dispatched(**row, **versions.get(row["task_id"], {})) for row in rows]


def wake_due(connection: Connection, *, limit: int = 1000) -> int:
    """Make scheduled and waiting tasks pending if their time has come; return their number."""
    return int(connection.scalar(WAKE_DUE, {"most": limit}) or 0)


def heal_waits(connection: Connection, *, after: UUID | None = None, limit: int = 5000) -> tuple[int, UUID | None]:
    """Wake waiting tasks that have nothing left to wait for.

    Args:
        after: the task where the last pass ended; None starts with the first ones.
        limit: the number of waiting tasks to check.

    Returns:
        the number of woken tasks, and where the pass ended; None if there are no more.
    """
    row = connection.execute(HEAL_WAITS, {"after": after, "most": limit}).one()
    return row.woken, row.last


def heal_turns(connection: Connection, *, limit: int = 1000) -> int:
    """Give a position to tasks whose predecessor in their conversation is done; return their number."""
    return int(connection.scalar(HEAL_TURNS, {"most": limit}) or 0)


def heal_clock(connection: Connection) -> int:
    """Set times of the past that lie in the future, because the clock was put back, to now; return how many rows."""
    return int(connection.scalar(HEAL_CLOCK) or 0)


def claim(
    connection: Connection, task: UUID, expected: int, worker: UUID, *, granted: bool = False
) -> Claimed | Refusal | None:
    """Claim a queued task.

    Args:
        granted: the limiter has permitted it to start.

    Returns:
        the claimed task; a refusal if a pause or a limit blocks it (if the obstacle's kind is `rate`, the caller must
        ask the limiter); None if the task cannot be claimed.
    """
    values = {"task": task, "claim": expected, "worker": worker, "granted": granted}
    found: Claimed | Refusal | None = connection.scalar(CLAIM, values)
    return found if found is None or "refused" in found else _claimed(found)


def claim_pack(connection: Connection, tasks: Sequence[tuple[str, int]], worker: UUID) -> list[Claimed]:
    """Claim those of the queued tasks that may start now; `claim` says why another one may not.

    Args:
        tasks: the id and the expected claim number of each.
    """
    pack = [{"task": task, "claim": expected} for task, expected in tasks]
    return [_claimed(row) for row in connection.scalars(CLAIM_PACK, {"pack": pack, "worker": worker})]


def unqueue(connection: Connection, task: UUID, expected: int) -> bool:
    """Return a queued task to pending that its worker will not claim; return False if it is not queued."""
    return connection.scalar(UNQUEUE, {"task": task, "claim": expected}) is not None


def _claimed(row: Claimed) -> Claimed:
    """Restore the key orders of a claimed task."""
    steps = [_step_in_order(step) for step in row["steps"]]
    return cast(Claimed, {**in_order(row, "input"), "steps": steps})


def _step_in_order(stored: KnownStep) -> KnownStep:
    """Restore the key order of a step from `minion_journal`, and of the outcome of its sub-task."""
    step = in_order(stored, "output")
    if "outcome" in stored:
        step["outcome"] = in_order(stored["outcome"], "output")
    return cast(KnownStep, step)


def hold(connection: Connection, task: UUID, expected: int, *, scope: str, name: str, delay: float) -> None:
    """Put a queued task back to pending; no task of that scope is dispatched until `delay` seconds have passed."""
    values = {"task": task, "claim": expected, "scope": scope, "name": name, "delay": timedelta(seconds=delay)}
    connection.execute(HOLD, values)


def is_cancelled(connection: Connection, task: UUID, claim: int) -> bool | None:
    """Return whether a running task was asked to stop. None if the claim was lost."""
    asked: bool | None = connection.scalar(IS_CANCELLED, {"task": task, "claim": claim})
    return asked


def write_steps(
    connection: Connection, task: UUID, claim: int, steps: list[StepRecord], model: str | None = None
) -> Flags | None:
    """Commit journal steps under the fence. Return the flags that the minion must obey, or None.

    Args:
        steps: a step that begins must be the last one.
        model: the model whose call begins: the flags contain its limits.
    """
    values: dict[str, Any] = {"task": task, "claim": claim, "steps": steps_with_order(steps)}
    statement = BEGIN_STEP if steps[1:] and steps[-1]["status"] == "started" else WRITE_STEPS
    if model is not None:
        statement, values["model"] = BEGIN_MODEL_CALL, model
    flags: Flags | None = connection.scalar(statement, values)
    return flags


def steps_with_order(steps: Sequence[StepRecord]) -> list[dict[str, Any]]:
    """Return journal steps in the form of the database: with the order of their keys."""
    return [with_order(step, "input", "output") for step in steps]


def result_with_order(result: ExecutionResult) -> dict[str, Any]:
    """Return the result of an execution, with the order of the keys in its output and its steps."""
    return {**with_order(result, "output"), "steps": steps_with_order(result.get("steps", []))}


def step_input(connection: Connection, task: UUID, number: int) -> Any:
    """Return the input of a step: a call's request, a sub-task's input, proposed arguments."""
    row = connection.execute(STEP_INPUT, {"task": task, "number": number}).one_or_none()
    return None if row is None else ordered(row.input, row.input_order)


def finish(connection: Connection, task: UUID, claim: int, state: State, result: ExecutionResult) -> State | None:
    """End a running task under the fence. Return its final state (an earlier cancellation wins), or None."""
    ended = connection.scalar(
        FINISH, {"task": task, "claim": claim, "state": state, "result": result_with_order(result)}
    )
    return State(ended) if ended else None


def ended(task: UUID, claim: int, result: ExecutionResult) -> dict[str, Any]:
    """Return the end of a task that has succeeded, as `finish_pack` takes it, without `seconds_ago`."""
    return {"task": str(task), "claim": claim, "result": result_with_order(result)}


def finish_pack(connection: Connection, ends: str) -> set[UUID]:
    """Record the ends of tasks that have succeeded, each under its fence, in one transaction.

    Args:
        ends: a JSON list of what `ended` returns, each with `seconds_ago`: the seconds since the task began.

    Returns:
        the tasks that were recorded; `finish` records any other, or says that its claim is lost.
    """
    return set(connection.scalars(FINISH_PACK, {"ended": ends}))


def release(
    connection: Connection,
    task: UUID,
    claim: int,
    *,
    how: str,
    charged: bool,
    delay: float = 0.0,
    result: ExecutionResult | None = None,
    worker: UUID | None = None,
) -> State | None:
    """Release a running task to run again after `delay` seconds, or fail it if its attempts are used up.

    Args:
        how: the execution's outcome: `retried`, `handed_back` or `lost`.
        charged: whether this counts as an attempt.
        result: as for `finish`; its `error` is the reason.
        worker: the worker that must hold the claim, for callers that have not read it from the record.

    Returns:
        the current state of the task, or None if the claim was lost.
    """
    values = {
        "task": task,
        "claim": claim,
        "how": how,
        "charged": charged,
        "delay": timedelta(seconds=delay),
        "result": result_with_order(result or {}),
        "worker": worker,
    }
    state = connection.scalar(RELEASE, values)
    return State(state) if state else None


def suspend(
    connection: Connection,
    task: UUID,
    claim: int,
    result: ExecutionResult,
    children: Sequence[ChildRecord],
    waits: Sequence[WaitRecord] = (),
) -> State | None:
    """Create sub-tasks and waits and suspend their task, in one transaction.

    Returns:
        the current state of the task (pending if the signals had already arrived), or None if the claim was lost.
    """
    values = {
        "task": task,
        "claim": claim,
        "result": result_with_order(result),
        "children": [{**child, "request": with_order(child["request"], "input")} for child in children],
        "waits": [with_order(wait, "approval") for wait in waits],
    }
    state = connection.scalar(SUSPEND, values)
    return State(state) if state else None


def snooze(
    connection: Connection, task: UUID, claim: int, result: ExecutionResult, *, delay: float | None, reason: str
) -> State | None:
    """Release a running task, uncharged, to run again after `delay` seconds, or (None) when its wait is over.

    Return None if the claim was lost.
    """
    pause = None if delay is None else timedelta(seconds=delay)
    values = {"task": task, "claim": claim, "result": result_with_order(result), "delay": pause, "reason": reason}
    state = connection.scalar(SNOOZE, values)
    return State(state) if state else None


def ask(connection: Connection, task: UUID, claim: int, result: ExecutionResult) -> State | None:
    """Suspend a task until a person decides about its interrupted step. None if the claim was lost."""
    state = connection.scalar(ASK, {"task": task, "claim": claim, "result": result_with_order(result)})
    return State(state) if state else None


def decide(
    connection: Connection,
    task: UUID,
    verdict: str,
    *,
    who: str,
    step: int | None = None,
    proposal: str | None = None,
    value: Any = None,
    reason: str | None = None,
    approver: Approver | None = None,
) -> Decided:
    """Decide about a step that waits for a person.

    Args:
        verdict: `approve` or `reject` a proposed call; `result`, `again` or `fail` for an interrupted one.
        who: the person, for the record.
        step: the number of the step.
        proposal: the hash of the proposal, as in `explain` and `undecided`. Without step and proposal, the decision
            applies to the first step that waits for one at that time.
        value: for `approve` the arguments that replace the proposed ones, for `result` the result of the call.
        approver: the deciding key, from `approvals.judge`; a step with an approval policy needs it.

    Raises:
        NotFound: there is no such task.
        Conflict: the task waits for no such decision, or the arguments have changed since they were judged.
        Forbidden: the approval policy does not permit it.
        InvalidInput: the verdict does not fit the step.
    """
    values = {
        "task": task,
        "step": step,
        "proposal": proposal,
        "verdict": verdict,
        "value": value,
        "order": order_of(value),
        "reason": reason,
        "who": who,
        "approver": approver,
    }
    decided: dict[str, Any] = connection.scalar(DECIDE, values)
    return Decided(**{**in_order(decided, "value"), "state": State(decided["state"])})


def signal(connection: Connection, task: UUID, name: str, payload: Any) -> State:
    """Send a signal to a task; it is kept until the task waits for it. Return the current state of the task.

    Raises:
        NotFound: there is no such task.
        Conflict: the task has ended.
        TooLarge, InvalidInput: the payload cannot be stored.
    """
    values = {"task": task, "name": name, "payload": payload, "order": order_of(payload)}
    return State(connection.scalar(SIGNAL, values))


def cancel(connection: Connection, task: UUID, *, reason: str, who: str | None = None) -> State:
    """Cancel a task and everything below it; a running one is asked to stop.

    Args:
        who: the user, for the record.

    Raises:
        NotFound: there is no such task.
    """
    by = {"by": who} if who else {}
    return _end_tree(connection, task, State.CANCELLED, {"type": "cancelled", "message": reason, **by})


def expire(connection: Connection, task: UUID) -> State:
    """End a task whose deadline has passed, and cancel everything below it."""
    error = {"type": "expired", "message": "The task's deadline passed before it was done."}
    return _end_tree(connection, task, State.EXPIRED, error)


def _end_tree(connection: Connection, task: UUID, state: State, error: dict[str, Any]) -> State:
    return State(connection.scalar(END_TREE, {"task": task, "state": state, "error": error}))
