"""Each call to the database, with the model's answer to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from orchestrator.preparer import check_pending, release_checked
from shared.errors import MinionError
from shared.tasks import lifecycle
from shared.tasks.states import State
from tests.lifecycle_model.model import Answer, Model, Step
from tests.lifecycle_model.observed import plain_output

LATER = 3600.0  # seconds: nothing is due by itself while a run lasts
ERROR = {"type": "test", "message": "It failed."}
CHILDREN = text(
    "SELECT child_id FROM steps WHERE task_id = :task AND claim = :claim AND number >= :first AND kind = 'subtask' "
    "ORDER BY number"
)


@dataclass(frozen=True)
class Call:
    """A call and its expectation.

    Attributes:
        ask: calls the database.
        expect: changes the model and returns the expected answer. It receives the actual answer, for ids and for
            what the database may choose freely.
        skipping: the same as `expect`, for a call that takes the tasks it finds. It also receives the tasks whose
            rows the call may have skipped, because an overlapping call held them.
        concerns: the tasks whose rows it may hold until its transaction ends; None: any.
    """

    name: str
    ask: Callable[[Connection], Answer]
    expect: Callable[[Model, Answer], Answer]
    skipping: Callable[[Model, Answer, frozenset[UUID]], Answer] | None = None
    concerns: frozenset[UUID] | None = frozenset()

    def answer(self, connection: Connection) -> Answer:
        """Return the answer; an error for the caller is one, too."""
        try:
            return self.ask(connection)
        except MinionError as error:
            return type(error).__name__


# ------------------------------------------------------------------------------------------------------ operators


def submit(agent: str, key: str | None = None, **fields: Any) -> Call:
    """Accept a task; fields that are None are left out."""
    request = {"agent": agent, "input": {}, "key": key, **fields}
    request = {name: value for name, value in request.items() if value is not None}

    def ask(connection: Connection) -> Answer:
        return lifecycle.accept(connection, [request])[0]

    return Call("submit", ask, lambda model, seen: model.accept(request, seen))


def signal(task: UUID, name: str, payload: Any) -> Call:
    """Send a signal."""

    def ask(connection: Connection) -> Answer:
        return lifecycle.signal(connection, task, name, payload)

    return Call("signal", ask, lambda model, seen: model.signal(task, name, payload), concerns=frozenset({task}))


def cancel(model: Model, task: UUID) -> Call:
    """Cancel a tree."""

    def ask(connection: Connection) -> Answer:
        return lifecycle.cancel(connection, task, reason="enough")

    return Call("cancel", ask, lambda model, seen: model.cancel(task), concerns=model.family(task))


# ---------------------------------------------------------------------------------------------- the orchestrator


def dispatch() -> Call:
    """Run one round of the dispatcher."""

    def ask(connection: Connection) -> Answer:
        release_checked(connection, check_pending(connection))
        lifecycle.heal_turns(connection)
        taken = lifecycle.dispatch(connection, lease=10.0, window=1000)
        return sorted((message.task_id, message.claim) for message in taken)

    def skipping(model: Model, seen: Answer, skipped: frozenset[UUID]) -> Answer:
        return model.dispatch(seen, partial=True)

    return Call("dispatch", ask, lambda model, seen: model.dispatch(seen), skipping, None)


def wake_due() -> Call:
    """Wake the tasks that are due."""

    def skipping(model: Model, seen: Answer, skipped: frozenset[UUID]) -> Answer:
        return model.wake_due(skipped)

    return Call("wake_due", lifecycle.wake_due, lambda model, seen: model.wake_due(), skipping, None)


def republish() -> Call:
    """Presume all messages lost: they are late, and every worker is idle."""

    def ask(connection: Connection) -> Answer:
        connection.execute(
            text("UPDATE task_status SET published_at = now() - interval '1 day' WHERE state = 'queued'")
        )
        again = lifecycle.republish(connection, lease=10.0, patience=1.0, empty_queues=["work"])
        return sorted((message.task_id, message.claim) for message in again)

    return Call("republish", ask, lambda model, seen: model.republish())


def heal_waits() -> Call:
    """Run the safety net for missed wake-ups, which must find nothing."""

    def ask(connection: Connection) -> Answer:
        connection.execute(text("UPDATE task_status SET updated_at = now() - interval '1 h' WHERE state = 'waiting'"))
        return lifecycle.heal_waits(connection)[0]

    return Call("heal_waits", ask, lambda model, seen: 0)


def expire(model: Model, task: UUID) -> Call:
    """End a task whose deadline has passed."""

    def ask(connection: Connection) -> Answer:
        return lifecycle.expire(connection, task)

    return Call("expire", ask, lambda model, seen: model.expire(task), concerns=model.family(task))


# --------------------------------------------------------------------------------------------------- the minion


def claim(task: UUID, expected: int, worker: UUID) -> Call:
    """Claim a task for a minion that received its message. The answer is None, `("refused", kind)` or the claim."""

    def ask(connection: Connection) -> Answer:
        row = lifecycle.claim(connection, task, expected, worker)
        if row is None or "refused" in row:
            return row and ("refused", row["refused"]["kind"])
        steps = {step["number"]: (step["kind"], step["status"], plain_output(step["output"])) for step in row["steps"]}
        return ("claimed", row["claim"], row["attempts"], steps)

    def expect(model: Model, seen: Answer) -> Answer:
        return model.claim(task, expected, worker)

    return Call("claim", ask, expect, concerns=frozenset({task}))


def hold(task: UUID, expected: int, scope: str, name: str) -> Call:
    """Let the limiter hold back a task."""

    def ask(connection: Connection) -> Answer:
        return lifecycle.hold(connection, task, expected, scope=scope, name=name, delay=LATER)

    return Call("hold", ask, lambda model, seen: model.hold(task, expected, scope), concerns=frozenset({task}))


def write(task: UUID, claim: int, number: int, step: Step) -> Call:
    """Journal a step."""
    row = {"number": number, "kind": step.kind, "name": "noop", "status": step.status, "request_hash": "h"}

    def ask(connection: Connection) -> Answer:
        return lifecycle.write_steps(connection, task, claim, [{**row, "output": step.output}])

    def expect(model: Model, seen: Answer) -> Answer:
        return model.write_steps(task, claim, {number: step})

    return Call("write", ask, expect, concerns=frozenset({task}))


def finish(model: Model, task: UUID, claim: int, state: State = State.SUCCEEDED) -> Call:
    """End a task."""
    result = {"error": ERROR} if state == State.FAILED else {"output": claim}

    def ask(connection: Connection) -> Answer:
        return lifecycle.finish(connection, task, claim, state, result)

    return Call("finish", ask, lambda model, seen: model.finish(task, claim, state), concerns=model.family(task))


def release(model: Model, task: UUID, claim: int, how: str, *, charged: bool = False, delay: float = 0.0) -> Call:
    """Give a task back."""

    def ask(connection: Connection) -> Answer:
        result = {"error": ERROR}
        return lifecycle.release(connection, task, claim, how=how, charged=charged, delay=delay, result=result)

    def expect(model: Model, seen: Answer) -> Answer:
        return model.release(task, claim, how, charged, delay)

    return Call("release", ask, expect, concerns=model.family(task))


def snooze(model: Model, task: UUID, claim: int) -> Call:
    """Suspend a task for a while."""

    def ask(connection: Connection) -> Answer:
        return lifecycle.snooze(connection, task, claim, {}, delay=LATER, reason="snoozed")

    return Call("snooze", ask, lambda model, seen: model.snooze(task, claim), concerns=model.family(task))


def suspend(model: Model, task: UUID, claim: int, children: list[str], waits: list[Step]) -> Call:
    """Wait for sub-tasks of these agents, and for signals and timers. The answer is (state, the sub-tasks' ids)."""
    first = model.tasks[task].next_step
    wanted = [
        {"step": n, "name": name, "request_hash": "h", "request": {"agent": name, "input": {}}}
        for n, name in enumerate(children, first)
    ]
    waiting = [
        {"step": n, "name": wait.name, "request_hash": "h", "signal": wait.name != "timer"}
        | ({} if wait.due is None else {"seconds": LATER})
        for n, wait in enumerate(waits, first + len(children))
    ]

    def ask(connection: Connection) -> Answer:
        state = lifecycle.suspend(connection, task, claim, {}, wanted, waiting)
        made = connection.scalars(CHILDREN, {"task": task, "claim": claim, "first": first}) if state else ()
        return state, tuple(made)

    def expect(model: Model, seen: Answer) -> Answer:
        return model.suspend(task, claim, children, waits, seen[1]), seen[1]

    return Call("suspend", ask, expect, concerns=model.family(task))
